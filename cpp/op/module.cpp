// The pybind11 module jumpout_export._C: table of contents of the compiled half. Addresses come as integers.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu_kernels.h"
#include "jumpout.h"
#include "jumpout_cpu.h"
#ifdef JUMPOUT_CUDA
#include "jumpout_cuda.h"
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;
using namespace jumpout;

namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void forward_cpu(uintptr_t x, uintptr_t y, uintptr_t keep_bits, uintptr_t stats, uintptr_t seed, int64_t n,
                 int64_t rows, int dtype, const Settings& settings, int threads) {
  py::gil_scoped_release release;
  jumpout_forward_cpu(at<void>(x), at<void>(y), at<uint8_t>(keep_bits), at<Stats>(stats), *at<uint64_t>(seed), n, rows,
                      static_cast<DType>(dtype), settings, threads);
}

void backward_cpu(uintptr_t dy, uintptr_t keep_bits, uintptr_t stats, uintptr_t dx, int64_t n, int64_t rows, int dtype,
                  int threads) {
  py::gil_scoped_release release;
  jumpout_backward_cpu(at<void>(dy), at<uint8_t>(keep_bits), at<Stats>(stats), at<void>(dx), n, rows,
                       static_cast<DType>(dtype), threads);
}

#ifdef JUMPOUT_CUDA
void forward_cuda(uintptr_t x, uintptr_t y, uintptr_t keep_bits, uintptr_t stats, uintptr_t seed, uintptr_t scratch,
                  int64_t n, int64_t rows, int dtype, const Settings& settings, int device, uintptr_t stream) {
  py::gil_scoped_release release;
  jumpout_forward_cuda(at<void>(x), at<void>(y), at<uint8_t>(keep_bits), at<Stats>(stats), at<uint64_t>(seed),
                       at<double>(scratch), n, rows, static_cast<DType>(dtype), settings, device, at<void>(stream));
}

void backward_cuda(uintptr_t dy, uintptr_t keep_bits, uintptr_t stats, uintptr_t dx, int64_t n, int64_t rows, int dtype,
                   int device, uintptr_t stream) {
  py::gil_scoped_release release;
  jumpout_backward_cuda(at<void>(dy), at<uint8_t>(keep_bits), at<Stats>(stats), at<void>(dx), n, rows,
                        static_cast<DType>(dtype), device, at<void>(stream));
}
#endif

py::tuple philox_reference(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1, int rounds) {
  const Philox out = philox({{c0, c1, c2, c3}}, k0, k1, rounds);
  return py::make_tuple(out.word[0], out.word[1], out.word[2], out.word[3]);
}

py::dict build_info() {
  py::dict info;
  info["version"] = JUMPOUT_VERSION;
  info["compiler"] = __VERSION__;
  info["philox_rounds"] = kPhiloxRounds;
  info["cpu_kernels"] = select_cpu_kernels().name;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef JUMPOUT_CUDA
  info["cuda"] = JUMPOUT_CUDA;
#else
  info["cuda"] = "not built (no nvcc was found, or JUMPOUT_CUDA=OFF)";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of jumpout_export; use them through jumpout_export.ops";
  m.attr("STATS_FIELDS") = py::make_tuple("q", "p", "p_prime", "scale", "capped");

  py::class_<Settings>(m, "Settings")
      .def(py::init([](double p, double sigma, double p_min, double p_max, double rate_cap, double alpha,
                       bool normalize, bool clip,
                       bool relu) { return Settings{p, sigma, p_min, p_max, rate_cap, alpha, normalize, clip, relu}; }),
           py::arg("p"), py::arg("sigma"), py::arg("p_min"), py::arg("p_max"), py::arg("rate_cap"), py::arg("alpha"),
           py::arg("normalize"), py::arg("clip"), py::arg("relu"));

  m.def("forward_cpu", &forward_cpu);
  m.def("backward_cpu", &backward_cpu);
#ifdef JUMPOUT_CUDA
  m.def("forward_cuda", &forward_cuda);
  m.def("backward_cuda", &backward_cuda);
  m.def("scratch_cuda", &jumpout_scratch_cuda);
#endif

  m.def("philox", &philox_reference, "Philox-4x32 of a counter and a key, for tests against published vectors");
  m.def("half_normal_quantile", &half_normal_quantile, "Quantile of |N(0, 1)| at u in (0, 1)");
  m.def("exact_log", &exact_log);
  m.def("exact_exp", &exact_exp);
  m.def("build_info", &build_info);
}
