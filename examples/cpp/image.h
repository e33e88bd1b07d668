// Reads an image file as numbers that a network takes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
  int64_t channels = 1, height = 0, width = 0;
  std::vector<float> values;  // 0 to 1, channel by channel, row by row
};

// Any PGM (grey) or PPM (colour) of 8 or 16 bits: P2, P3, P5 and P6, with comments, scaled by its largest value. Throws
// std::runtime_error.
Image read_image(const std::string& file);
