#include "patches.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace lhkernels {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;  // larger ones leave the cache, smaller ones are too thin
constexpr int64_t kCopyGrain = 1 << 15;   // numbers that are worth a thread

int64_t product(at::IntArrayRef numbers) {
  int64_t result = 1;
  for (const int64_t number : numbers) {
    result *= number;
  }
  return result;
}

at::Tensor pad_zeros(const at::Tensor& x, at::IntArrayRef padding) {
  if (std::all_of(padding.begin(), padding.end(), [](int64_t width) { return width == 0; })) {
    return x;
  }
  std::vector<int64_t> widths;
  for (auto width = padding.rbegin(); width != padding.rend(); ++width) {
    widths.insert(widths.end(), 2, *width);
  }
  return at::constant_pad_nd(x, widths);
}

// The patches of a padded input, (G * C/G, *kernel, N, *out), nothing copied.
at::Tensor patch_view(const at::Tensor& padded, const Geometry& geometry) {
  const auto strides = padded.strides();
  std::vector<int64_t> sizes = {padded.size(1)};
  std::vector<int64_t> steps = {strides[1]};
  for (size_t i = 0; i < geometry.kernel.size(); ++i) {
    sizes.push_back(geometry.kernel[i]);
    steps.push_back(geometry.dilation[i] * strides[2 + i]);
  }
  sizes.push_back(padded.size(0));
  steps.push_back(strides[0]);
  for (size_t i = 0; i < geometry.kernel.size(); ++i) {
    const int64_t reach = geometry.dilation[i] * (geometry.kernel[i] - 1) + 1;
    sizes.push_back((padded.size(2 + i) - reach) / geometry.stride[i] + 1);
    steps.push_back(geometry.stride[i] * strides[2 + i]);
  }
  return padded.as_strided(sizes, steps);
}

// A row of U less its mean: the columns in the order of `sizes`, the last dimension fastest.
template <typename T>
T* copy_row(T* out, const T* source, at::IntArrayRef sizes, at::IntArrayRef steps, T mean) {
  if (sizes.size() > 2) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      out = copy_row(out, source + i * steps[0], sizes.slice(1), steps.slice(1), mean);
    }
    return out;
  }
  const int64_t lines = sizes.size() == 2 ? sizes[0] : 1;
  const int64_t line_step = sizes.size() == 2 ? steps[0] : 0;
  const int64_t length = sizes.back();
  const int64_t step = steps.back();
  for (int64_t line = 0; line < lines; ++line, source += line_step, out += length) {
    if (step == 1) {
      int64_t i = 0;
      for (; i + 4 <= length; i += 4) {  // lines are short: no more unrolling than this
        for (int64_t j = i; j < i + 4; ++j) {
          out[j] = source[j] - mean;
        }
      }
      for (; i < length; ++i) {
        out[i] = source[i] - mean;
      }
    } else {
      for (int64_t i = 0; i < length; ++i) {
        out[i] = source[i * step] - mean;
      }
    }
  }
  return out;
}

// The view, of which the dimensions from `first` on are a column's index, as contiguous (d', m').
void copy_patches(const at::Tensor& view, int64_t first, const at::Tensor& mean, at::Tensor& out) {
  const auto sizes = view.sizes();
  const auto steps = view.strides();
  const int64_t columns = product(sizes.slice(first));
  AT_DISPATCH_FLOATING_TYPES(view.scalar_type(), "copy_patches", [&] {
    const auto* source = view.const_data_ptr<scalar_t>();
    const auto* means = mean.defined() ? mean.const_data_ptr<scalar_t>() : nullptr;
    auto* target = out.mutable_data_ptr<scalar_t>();
    const int64_t grain = std::max<int64_t>(1, kCopyGrain / std::max<int64_t>(1, columns));
    at::parallel_for(0, product(sizes.slice(0, first)), grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t rest = row;
        int64_t offset = 0;
        for (int64_t dim = first - 1; dim >= 0; --dim) {
          offset += rest % sizes[dim] * steps[dim];
          rest /= sizes[dim];
        }
        copy_row<scalar_t>(target + row * columns, source + offset, sizes.slice(first),
                           steps.slice(first), means == nullptr ? scalar_t(0) : means[row]);
      }
    });
  });
}

}  // namespace

int64_t Geometry::patch_size(const at::Tensor& x) const {
  return x.size(1) / groups * product(kernel);
}

std::vector<int64_t> Geometry::output_size(at::IntArrayRef size) const {
  std::vector<int64_t> result;
  for (size_t i = 0; i < kernel.size(); ++i) {
    const int64_t reach = dilation[i] * (kernel[i] - 1) + 1;
    result.push_back((size[i] + 2 * padding[i] - reach) / stride[i] + 1);
  }
  return result;
}

void for_patches(const at::Tensor& x, const Geometry& geometry,
                 const std::optional<at::Tensor>& mean, int64_t beside, int64_t memory_limit,
                 const std::function<void(const at::Tensor&)>& use) {
  const int64_t groups = geometry.groups;
  const int64_t size = geometry.patch_size(x);
  const std::vector<int64_t> places = geometry.output_size(x.sizes().slice(2));
  const int64_t place_count = product(places);
  const int64_t line = places.empty() ? 1 : std::max<int64_t>(1, place_count / places[0]);
  const int64_t bytes = groups * (size + beside) * x.element_size();
  const int64_t columns = std::max<int64_t>(1, std::min(memory_limit, kChunkBytes) / bytes);
  const int64_t samples = std::max<int64_t>(1, columns / std::max<int64_t>(1, place_count));
  const int64_t lines = std::max<int64_t>(1, columns / line);
  const int64_t first_dim = 1 + static_cast<int64_t>(geometry.kernel.size());  // of a column
  const bool copy_here = x.is_cpu() && (mean || !places.empty());
  const at::Tensor means = mean ? mean->contiguous() : at::Tensor();
  const auto pass = [&](const at::Tensor& view) {
    if (copy_here) {
      at::Tensor out =
          at::empty({groups, size, product(view.sizes().slice(first_dim))}, x.options());
      copy_patches(view, first_dim, means, out);
      use(out);
    } else {
      const at::Tensor flat = view.reshape({groups, size, -1});
      use(mean ? flat - means.unsqueeze(2) : flat);
    }
  };
  for (int64_t begin = 0; begin < x.size(0); begin += samples) {
    const at::Tensor part = x.narrow(0, begin, std::min(samples, x.size(0) - begin));
    const at::Tensor view = patch_view(pad_zeros(part, geometry.padding), geometry);
    if (samples > 1 || places.empty()) {
      pass(view);
      continue;
    }
    for (int64_t top = 0; top < places[0]; top += lines) {
      pass(view.narrow(first_dim + 1, top, std::min(lines, places[0] - top)));
    }
  }
}

}  // namespace lhkernels
