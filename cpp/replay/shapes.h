// Which nodes of an ONNX file read nothing but shapes and constants.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace jumpout::replay {

// The rule is that of jumpout_export/onnxfile/shapes.py; tests/replay/test_shapes_only.py holds both to the same cases.
class ShapeNodes {
 public:
  // `model` is the content of a file. Throws FormatError if its nodes cannot be read.
  explicit ShapeNodes(std::string_view model);

  // Whether there are nodes with this name and operator, and all of them are of that kind.
  bool all(const std::string& name, const std::string& operation) const;
  // Whether there is one.
  bool any(const std::string& name, const std::string& operation) const;

 private:
  class Walk;
  std::map<std::pair<std::string, std::string>, bool> nodes_;
};

// Throws NotVerifiable.
ShapeNodes read_shape_nodes(const std::filesystem::path& model);

}  // namespace jumpout::replay
