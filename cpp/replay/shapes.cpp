#include "shapes.h"

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "errors.h"
#include "message.h"
#include "plain_file.h"
#include "platform.h"

namespace jumpout::replay {
namespace {

using Names = std::set<std::string_view>;

// onnx.proto. Numbers of fields, by message.
enum Model : uint32_t { kModelGraph = 7, kModelFunctions = 25 };
enum Graph : uint32_t { kGraphNode = 1, kGraphInitializer = 5, kGraphInput = 11, kGraphSparseInitializer = 15 };
enum Node : uint32_t { kInput = 1, kOutput = 2, kName = 3, kOperation = 4, kAttribute = 5, kDomain = 7 };
enum Attribute : uint32_t { kAttributeGraph = 6, kAttributeGraphs = 11 };
enum Function : uint32_t { kFunctionName = 1, kFunctionNode = 7, kFunctionDomain = 10 };
constexpr uint32_t kTensorName = 8, kSparseValues = 1, kValueName = 1;

// Protobuf's own limit is 100 messages in each other, of which a subgraph takes three.
constexpr int kDeepest = 34;

constexpr std::array<std::string_view, 6> kRandom = {"RandomUniform",    "RandomUniformLike", "RandomNormal",
                                                     "RandomNormalLike", "Bernoulli",         "Multinomial"};

struct NodeParts {
  std::string_view name, operation, domain;
  std::vector<std::string_view> inputs, outputs, graphs;
};

NodeParts read_node(std::string_view message) {
  NodeParts node;
  each(message, [&](uint32_t number, std::string_view content) {
    if (number == kInput && !content.empty()) node.inputs.push_back(content);
    if (number == kOutput) node.outputs.push_back(content);
    if (number == kName) node.name = content;
    if (number == kOperation) node.operation = content;
    if (number == kDomain) node.domain = content;
    if (number != kAttribute) return;
    if (const std::string_view graph = message_in(content, kAttributeGraph); graph.data()) node.graphs.push_back(graph);
    each(content, [&](uint32_t kind, std::string_view graph) {
      if (kind == kAttributeGraphs) node.graphs.push_back(graph);
    });
  });
  return node;
}

std::vector<NodeParts> read_nodes(std::string_view message, uint32_t wanted) {
  std::vector<NodeParts> nodes;
  each(message, [&](uint32_t number, std::string_view content) {
    if (number == wanted) nodes.push_back(read_node(content));
  });
  return nodes;
}

bool is_default(std::string_view domain) { return domain.empty() || domain == "ai.onnx"; }

bool reads_shapes(const NodeParts& node, const Names& known) {
  const auto is_known = [&known](std::string_view name) { return known.count(name) > 0; };
  if (!is_default(node.domain) || std::find(kRandom.begin(), kRandom.end(), node.operation) != kRandom.end()) {
    return false;
  }
  if (node.inputs.empty()) return node.operation == "Constant";  // others make values out of nothing
  return node.operation == "Shape" || node.operation == "Size" ||
         std::all_of(node.inputs.begin(), node.inputs.end(), is_known);
}

}  // namespace

class ShapeNodes::Walk {
 public:
  Walk(ShapeNodes& result, const Names& functions) : result_(result), functions_(functions) {}

  void graph(std::string_view message, Names known, int depth) {
    if (depth > kDeepest) throw FormatError("its graphs lie too deep in each other");
    Names inputs;
    each(message, [&](uint32_t number, std::string_view content) {
      if (number == kGraphInput) inputs.insert(text_in(content, kValueName));
      if (number == kGraphInitializer) known.insert(text_in(content, kTensorName));
      if (number == kGraphSparseInitializer) known.insert(text_in(message_in(content, kSparseValues), kTensorName));
    });
    const std::vector<NodeParts> nodes = read_nodes(message, kGraphNode);
    // Whoever runs the model may pass another value than an initializer that is an input too. What a node computes
    // hides a value of the same name further out, wherever in the graph it stands, and is known once that node has been
    // seen.
    for (const std::string_view name : inputs) known.erase(name);
    for (const NodeParts& node : nodes) {
      for (const std::string_view name : node.outputs) known.erase(name);
    }
    for (const NodeParts& node : nodes) {
      const bool found = node.graphs.empty() && !functions_.count(node.operation) && reads_shapes(node, known);
      note(node, found);
      if (found) known.insert(node.outputs.begin(), node.outputs.end());
      for (const std::string_view subgraph : node.graphs) graph(subgraph, known, depth + 1);
    }
  }

  // A function may be called with anything.
  void function_nodes(const std::vector<NodeParts>& nodes, int depth) {
    if (depth > kDeepest) throw FormatError("its graphs lie too deep in each other");
    for (const NodeParts& node : nodes) {
      note(node, false);
      for (const std::string_view subgraph : node.graphs) function_nodes(read_nodes(subgraph, kGraphNode), depth + 1);
    }
  }

 private:
  void note(const NodeParts& node, bool found) {
    auto& entry =
        result_.nodes_.try_emplace({std::string(node.name), std::string(node.operation)}, found).first->second;
    entry = entry && found;
  }

  ShapeNodes& result_;
  const Names& functions_;  // with the names of ONNX's own operators
};

ShapeNodes::ShapeNodes(std::string_view model) {
  const std::string_view graph = message_in(model, kModelGraph);
  if (!graph.data()) throw FormatError("it holds no graph");
  Names functions;
  Walk walk(*this, functions);
  each(model, [&](uint32_t number, std::string_view content) {
    if (number != kModelFunctions) return;
    if (is_default(text_in(content, kFunctionDomain))) functions.insert(text_in(content, kFunctionName));
    walk.function_nodes(read_nodes(content, kFunctionNode), 0);
  });
  walk.graph(graph, {}, 0);
}

bool ShapeNodes::any(const std::string& name, const std::string& operation) const {
  return nodes_.count({name, operation}) > 0;
}

bool ShapeNodes::all(const std::string& name, const std::string& operation) const {
  const auto found = nodes_.find({name, operation});
  return found != nodes_.end() && found->second;
}

ShapeNodes read_shape_nodes(const std::filesystem::path& model) {
  try {
    return ShapeNodes(read_plain(model).value_or(""));
  } catch (const FormatError& error) {
    throw NotVerifiable(shown(model) +
                        ": nodes ran on the CPU, and which of them only compute shapes is not known: " + error.what());
  }
}

}  // namespace jumpout::replay
