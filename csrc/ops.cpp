// The schemas of the batched products, whose fake implementations are in lhkernels/ops.py, and a
// Python module whose import runs all registrations (the step's are in sgd_step.cpp).
#include <Python.h>

#include <torch/library.h>
#include <torch/version.h>

#include "hvp.h"

TORCH_LIBRARY(lhkernels, m) {
  m.def(
      "patch_gram(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? mean, int memory_limit) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "gram_hvp(Tensor gram, Tensor rows, Tensor? scale, Tensor? direction, int memory_limit) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "patch_hvp(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? mean, Tensor rows, Tensor? scale, Tensor? direction, int memory_limit) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "input_hvp(Tensor rows, Tensor weight, int[] kernel, int[] stride, int[] padding, "
      "int[] dilation, int groups, Tensor? scale, Tensor? direction, int memory_limit) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

void register_hvp(torch::Library& m) {
  m.impl("patch_gram", &lhkernels::patch_gram);
  m.impl("gram_hvp", &lhkernels::gram_hvp);
  m.impl("patch_hvp", &lhkernels::patch_hvp);
  m.impl("input_hvp", &lhkernels::input_hvp);
}

TORCH_LIBRARY_IMPL(lhkernels, CPU, m) { register_hvp(m); }
TORCH_LIBRARY_IMPL(lhkernels, CUDA, m) { register_hvp(m); }

// TORCH_VERSION lets the loader refuse a torch whose C++ interface is another.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr && PyModule_AddStringConstant(module, "TORCH_VERSION", TORCH_VERSION) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
