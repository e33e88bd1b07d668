// What a program sees of the library: replay-model MODEL.onnx [PROVIDER]
// Loads the model, repeats its proof, runs its golden inputs in another order from four threads, and makes mistakes.
// Prints what it gets, an error by its problem and message.
#include <algorithm>
#include <functional>
#include <iostream>
#include <thread>

#include "golden.h"
#include "jumpout/model.h"
#include "tensor.h"

namespace {

using jumpout::Tensor;

void attempt(const std::string& what, const std::function<void()>& act) {
  try {
    act();
    std::cout << what << ": fine\n";
  } catch (const std::exception& error) {
    const auto* ours = dynamic_cast<const jumpout::Error*>(&error);
    const bool exact = typeid(error) == typeid(jumpout::Error);
    std::cout << what << ": " << (exact ? static_cast<int>(ours->problem()) : -1) << " " << error.what() << "\n";
  }
}

bool same(const std::vector<Tensor>& one, const std::vector<Tensor>& two) {
  return std::equal(one.begin(), one.end(), two.begin(), two.end(),
                    [](const Tensor& a, const Tensor& b) { return a.name == b.name && a.bytes == b.bytes; });
}

void use(const jumpout::Model& model, const std::vector<Tensor>& inputs) {
  std::vector<Tensor> reversed(inputs.rbegin(), inputs.rend());
  const std::vector<Tensor> outputs = model.run(reversed);
  for (const Tensor& output : outputs) {
    std::cout << output.name << ": " << jumpout::replay::describe(output.dtype, output.shape) << "\n";
  }
  std::vector<std::thread> threads;
  std::vector<char> right(4);
  for (size_t i = 0; i < right.size(); ++i) {
    threads.emplace_back([&, i] { right[i] = same(model.run(inputs), outputs); });
  }
  for (std::thread& thread : threads) thread.join();
  std::cout << "four threads: " << std::count(right.begin(), right.end(), 1) << " right\n";

  attempt("missing", [&] { model.run({inputs.begin(), inputs.end() - 1}); });
  attempt("twice", [&] {
    reversed.push_back(inputs.front());
    model.run(reversed);
  });
  const auto changed = [&](const std::function<void(Tensor&)>& change) {
    std::vector<Tensor> copy = inputs;
    change(copy.front());
    model.run(copy);
  };
  attempt("shape", [&] { changed([](Tensor& tensor) { tensor.shape.push_back(1); }); });
  attempt("dtype", [&] { changed([](Tensor& tensor) { tensor.dtype = jumpout::DType::kInt32; }); });
  attempt("bytes", [&] { changed([](Tensor& tensor) { tensor.bytes.pop_back(); }); });
  attempt("negative", [&] { changed([](Tensor& tensor) { tensor.shape[0] = -1; }); });
  attempt("name", [&] { named(outputs, "nothing"); });
  attempt("values", [&] { outputs.front().values<int64_t>(); });
  const Tensor made = Tensor::of<double>("made", {2}, {1.5, -2});
  std::cout << made.count() << " values, " << made.values<double>()[1] << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::filesystem::path file = argv[1];
  attempt("no file", [&] { jumpout::Model(file.parent_path() / "none.onnx"); });
  attempt("no provider", [&] { jumpout::Model(file, {"tpu"}); });
  attempt("no threads", [&] { jumpout::Model(file, {"cpu", 0}); });
  attempt("load", [&] {
    const jumpout::Model model(file);
    std::cout << "folded: " << model.metadata("jumpout_export.folded").value_or("") << "\n";
    const jumpout::Verification proof = model.verify(2);
    std::cout << proof.text << proof.json << (proof ? "passed, " : "failed, ") << proof.checks.size() << " checks\n";
    if (!proof) return;
    const auto golden = jumpout::replay::read_golden(file.parent_path(), model.inputs(), model.outputs());
    use(model, golden.front().inputs);
  });
}
