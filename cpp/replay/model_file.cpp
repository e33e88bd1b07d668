#include "model_file.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "errors.h"
#include "message.h"
#include "plain_file.h"
#include "platform.h"

namespace jumpout::replay {
namespace {

namespace fs = std::filesystem;

// onnx.proto. Numbers of fields, by message.
enum Model : uint32_t { kModelGraph = 7, kModelTraining = 20, kModelFunctions = 25 };
enum Training : uint32_t { kInitialization = 1, kAlgorithm = 2 };
enum Graph : uint32_t { kGraphNode = 1, kGraphInitializer = 5, kGraphSparse = 15 };
enum Function : uint32_t {
  kFunctionName = 1,
  kFunctionNode = 7,
  kFunctionDomain = 10,
  kFunctionDefaults = 11,
  kFunctionOverload = 13
};
enum Node : uint32_t { kOperation = 4, kAttribute = 5, kDomain = 7, kOverload = 8 };
enum Attribute : uint32_t { kTensor = 5, kGraph = 6, kTensors = 10, kGraphs = 11, kSparse = 22, kSparses = 23 };
enum Sparse : uint32_t { kSparseValues = 1, kSparseIndices = 2 };
enum Tensor : uint32_t { kTensorName = 8, kExternal = 13, kLocation = 14 };
enum Entry : uint32_t { kEntryKey = 1, kEntryValue = 2 };
constexpr uint32_t kElsewhere = 1;  // TensorProto.EXTERNAL

constexpr uintmax_t kLargest = (uintmax_t{1} << 31) - 1;  // protobuf's own
constexpr int kDeepest = 34;                              // as in shapes.cpp
// As in jumpout_export/onnxfile/functions.py.
constexpr int kMostLevels = 100;
constexpr double kMostNodes = 200000;

using Key = std::tuple<std::string, std::string, std::string>;  // domain, name, overload

// Of a graph or function: its nodes, those in subgraphs among them, and how often it calls what.
struct Body {
  double nodes = 0;
  std::map<Key, double> calls;
};

Key key(std::string_view domain, std::string_view name, std::string_view overload) {
  return {domain == "ai.onnx" ? "" : std::string(domain), std::string(name), std::string(overload)};
}

bool is_number(std::string_view text) {
  if (text.substr(0, 1) == "-") text.remove_prefix(1);
  return !text.empty() && text.size() <= 19 && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// Why a file name does not lead to a regular file in the folder; empty if it does.
std::string misplaced(const fs::path& folder, const std::string& name) {
  const auto steers = [](unsigned char c) { return c < ' ' || c == '\x7f'; };
  if (name.empty() || std::any_of(name.begin(), name.end(), steers)) return "`" + one_line(name) + "` is no file name";
  const fs::path relative = path_of(name);
  if (relative.is_absolute() || std::find(relative.begin(), relative.end(), "..") != relative.end()) {
    return one_line(name) + " is outside of the model's folder";
  }
  std::error_code error;
  return fs::is_regular_file(folder / relative, error) ? "" : one_line(name) + " is no file";
}

// Walks through everything in which there may be nodes and tensors.
class Walk {
 public:
  explicit Walk(const fs::path& folder) : folder_(folder) {}

  void graph(std::string_view message, Body& body, int depth) {
    if (depth > kDeepest) throw FormatError("its graphs lie too deep in each other");
    each(message, [&](uint32_t number, std::string_view content) {
      if (number == kGraphNode) node(content, body, depth);
      if (number == kGraphInitializer) tensor(content);
      if (number == kGraphSparse) sparse(content);
    });
  }

  void node(std::string_view message, Body& body, int depth) {
    body.nodes += 1;
    body.calls[key(text_in(message, kDomain), text_in(message, kOperation), text_in(message, kOverload))] += 1;
    each(message, [&](uint32_t number, std::string_view content) {
      if (number == kAttribute) attribute(content, body, depth);
    });
  }

  void attribute(std::string_view message, Body& body, int depth) {
    if (const std::string_view one = message_in(message, kTensor); one.data()) tensor(one);
    if (const std::string_view one = message_in(message, kSparse); one.data()) sparse(one);
    if (const std::string_view one = message_in(message, kGraph); one.data()) graph(one, body, depth + 1);
    each(message, [&](uint32_t number, std::string_view content) {
      if (number == kTensors) tensor(content);
      if (number == kSparses) sparse(content);
      if (number == kGraphs) graph(content, body, depth + 1);
    });
  }

  const std::set<std::string>& data_files() const { return data_files_; }

 private:
  void sparse(std::string_view message) {
    if (const std::string_view values = message_in(message, kSparseValues); values.data()) tensor(values);
    if (const std::string_view indices = message_in(message, kSparseIndices); indices.data()) tensor(indices);
  }

  // What is said twice is read in two ways: one reader takes the first, another the last.
  void tensor(std::string_view message) {
    bool elsewhere = false;
    for (WireReader reader(message); !reader.done();) {
      const Field field = reader.field();
      if (field.type == WireType::kVarint) {
        const uint64_t value = reader.varint();  // an enum has 32 bits
        elsewhere = (field.number == kLocation && static_cast<uint32_t>(value) == kElsewhere) || elsewhere;
      } else if (field.type == WireType::kBytes) {
        reader.bytes();
      } else {
        field.type == WireType::kFixed32 ? reader.fixed32() : reader.fixed64();
      }
    }
    if (!elsewhere) return;
    const std::string name = "tensor `" + one_line(text_in(message, kTensorName)) + "`: ";
    std::map<std::string, std::string> said;
    each(message, [&](uint32_t number, std::string_view content) {
      if (number != kExternal) return;
      const std::string what(text_in(content, kEntryKey));
      if (!said.emplace(what, text_in(content, kEntryValue)).second) {
        throw FormatError(name + "it says twice what its `" + one_line(what) + "` is");
      }
    });
    static const std::set<std::string> known = {"location", "offset", "length", "checksum"};
    for (const auto& [what, value] : said) {
      if (!known.count(what))
        throw FormatError(name + "it says what its `" + one_line(what) + "` is, nobody knows that");
      if ((what == "offset" || what == "length") && !is_number(value)) {
        throw FormatError(name + "its " + what + " is no number");
      }
    }
    const std::string problem = misplaced(folder_, said["location"]);
    if (!problem.empty()) throw FormatError(name + problem);
    data_files_.insert(said["location"]);
  }

  const fs::path folder_;
  std::set<std::string> data_files_;
};

// The functions in an order in which each stands behind those it calls.
std::vector<Key> callees_first(const std::map<Key, Body>& bodies) {
  std::vector<Key> order;
  std::set<Key> done;
  for (int level = 0; level < kMostLevels && order.size() < bodies.size(); ++level) {
    std::vector<Key> ready;
    for (const auto& [name, body] : bodies) {
      const auto is_done = [&](const auto& call) { return !bodies.count(call.first) || done.count(call.first); };
      if (!done.count(name) && std::all_of(body.calls.begin(), body.calls.end(), is_done)) ready.push_back(name);
    }
    if (ready.empty()) break;
    order.insert(order.end(), ready.begin(), ready.end());
    done.insert(ready.begin(), ready.end());
  }
  if (order.size() < bodies.size()) {
    throw FormatError("its functions call each other in a circle, or more than " + std::to_string(kMostLevels) +
                      " deep");
  }
  return order;
}

// Nodes that come out of functions are counted once for every function around them, which is how often ONNX Runtime
// touches them.
void refuse_unbounded(const std::map<Key, Body>& functions, const Body& graphs) {
  struct Size {
    double nodes = 0, work = 0;
  };
  std::map<Key, Size> sizes;
  double most = 0;
  for (const Key& name : callees_first(functions)) {
    const Body& body = functions.at(name);
    Size size{body.nodes, body.nodes};
    for (const auto& [callee, times] : body.calls) {
      if (const auto found = sizes.find(callee); found != sizes.end()) {
        size.nodes += times * found->second.nodes;
        size.work += times * (found->second.work + found->second.nodes);
      }
    }
    sizes[name] = size;
    most = std::max(most, size.work);
  }
  double total = 0;
  for (const auto& [callee, times] : graphs.calls) {
    if (const auto found = sizes.find(callee); found != sizes.end()) total += times * found->second.work;
  }
  if (std::max(total, most) > kMostNodes) {
    throw FormatError("its functions come to more than 200,000 nodes once they are written out where they are called");
  }
}

std::set<std::string> survey(std::string_view model, const fs::path& folder) {
  Walk walk(folder);
  Body graphs;
  const std::string_view main = message_in(model, kModelGraph);
  if (!main.data()) throw FormatError("it holds no graph");
  walk.graph(main, graphs, 0);
  std::map<Key, Body> functions;
  each(model, [&](uint32_t number, std::string_view content) {
    if (number == kModelTraining) {
      for (const uint32_t kind : {kInitialization, kAlgorithm}) {
        if (const std::string_view one = message_in(content, kind); one.data()) walk.graph(one, graphs, 0);
      }
    }
    if (number != kModelFunctions) return;
    const Key name =
        key(text_in(content, kFunctionDomain), text_in(content, kFunctionName), text_in(content, kFunctionOverload));
    const auto [entry, is_new] = functions.try_emplace(name);
    if (!is_new) throw FormatError("two of its functions have one name");
    each(content, [&, body = &entry->second](uint32_t part, std::string_view inner) {
      if (part == kFunctionNode) walk.node(inner, *body, 0);
      if (part == kFunctionDefaults) walk.attribute(inner, *body, 0);
    });
  });
  refuse_unbounded(functions, graphs);
  return walk.data_files();
}

}  // namespace

std::set<std::string> refuse_hostile(const fs::path& model) {
  std::error_code error;
  if (fs::is_regular_file(model, error) && fs::file_size(model, error) > kLargest) {
    throw UsageError(shown(model) + ": it is larger than 2 GiB, the most that protobuf reads");
  }
  const std::optional<std::string> content = read_plain(model);
  if (!content) throw UsageError(shown(model) + ": it is not a file that can be read");
  const fs::path folder = model.parent_path();
  try {
    return survey(*content, folder.empty() ? fs::path(".") : folder);
  } catch (const FormatError& reason) {
    throw UsageError(shown(model) + ": it is no ONNX model that can be used: " + one_line(reason.what()));
  }
}

}  // namespace jumpout::replay
