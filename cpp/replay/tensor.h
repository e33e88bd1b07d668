// What is known of dtypes and shapes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "jumpout/tensor.h"

namespace jumpout::replay {

bool is_known(int64_t dtype);
size_t element_size(DType dtype);
bool is_floating_point(DType dtype);
const char* dtype_name(DType dtype);

// Number of elements; throws FormatError if a length is negative or the tensor could not be addressed.
size_t element_count(const std::vector<int64_t>& shape);

// `float32[8,10]`; -1 is an open length and printed as `?`.
std::string describe(DType dtype, const std::vector<int64_t>& shape);

// Whether a tensor is one that an input or output of the model may be; empty if so, or what the two are.
std::string misfit(const Tensor& tensor, const Signature& wanted);

// One element of a floating point tensor, exact in every dtype.
double value_at(const Tensor& tensor, size_t index);

}  // namespace jumpout::replay
