// https://netpbm.sourceforge.net/doc/pgm.html and ppm.html
#include "image.h"

#include <fstream>
#include <stdexcept>

namespace {

constexpr int kLongestSide = 1 << 14, kLargestValue = 65535;

[[noreturn]] void refuse(const std::string& file, const std::string& why) {
  throw std::runtime_error(file + ": it is no PGM or PPM image that can be read: " + why);
}

// The next number of the header, or of the pixels of a text format; a comment goes from # to the end of its line.
int next_number(std::istream& stream, const std::string& file, int least, int most) {
  while (stream >> std::ws && stream.peek() == '#') {
    while (stream.good() && stream.get() != '\n') {
    }
  }
  int value = 0;
  if (!(stream >> value)) refuse(file, "a number is missing");
  if (value < least || value > most) {
    refuse(file, std::to_string(value) + " is not in [" + std::to_string(least) + ", " + std::to_string(most) + "]");
  }
  return value;
}

// The next value of a binary format, of two bytes where one does not hold all.
int next_value(std::istream& stream, const std::string& file, int most) {
  int value = stream.get();
  if (most > 255) value = value << 8 | stream.get();
  if (!stream) refuse(file, "it is truncated");
  if (value > most) refuse(file, std::to_string(value) + " is above its largest value, " + std::to_string(most));
  return value;
}

}  // namespace

Image read_image(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error(file + ": it cannot be opened");
  std::string format(2, ' ');
  stream.read(&format[0], 2);
  const bool is_text = format == "P2" || format == "P3", is_colour = format == "P3" || format == "P6";
  if (!is_text && format != "P5" && format != "P6") refuse(file, "it does not begin with P2, P3, P5 or P6");
  Image image;
  image.channels = is_colour ? 3 : 1;
  image.width = next_number(stream, file, 1, kLongestSide);
  image.height = next_number(stream, file, 1, kLongestSide);
  const int most = next_number(stream, file, 1, kLargestValue);
  if (!is_text) stream.get();  // one white space ends the header
  const int64_t pixels = image.height * image.width;
  image.values.resize(static_cast<size_t>(image.channels * pixels));
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {  // in the file the channels of a pixel lie together
    for (int64_t channel = 0; channel < image.channels; ++channel) {
      const int value = is_text ? next_number(stream, file, 0, most) : next_value(stream, file, most);
      image.values[static_cast<size_t>(channel * pixels + pixel)] =
          static_cast<float>(value) / static_cast<float>(most);
    }
  }
  return image;
}
