// See hvp.h. Chunks of patches and of vectors keep the workspace within memory_limit bytes.
#include "hvp.h"

#include <algorithm>
#include <vector>

#include "patches.h"

namespace lhkernels {
namespace {

constexpr int64_t kSymmetricBlock = 192;  // only blocks on and above the diagonal are computed
constexpr int64_t kGramBytes = 4 << 20;      // of rows at a time, and of their products: cache
constexpr int64_t kFactoredBytes = 12 << 20;  // more, since each time the patches are made again
constexpr int64_t kInputBytes = 8 << 20;

using Optional = std::optional<at::Tensor>;

// The batch norm's part, of (G, K, outputs, d): out <- scale out - direction (direction . rows).
void finish(at::Tensor& out, const at::Tensor& rows, const Optional& scale,
            const Optional& direction) {
  if (scale) {
    out.mul_(scale->unsqueeze(1).unsqueeze(3));
  }
  if (direction) {
    const at::Tensor products = at::matmul(rows.transpose(1, 2), direction->unsqueeze(3));
    out.transpose(1, 2).addcmul_(products, direction->unsqueeze(2), -1);
  }
}

// `multiply` maps (G, any, d) to the products with each group's A. Of rows (K, n_out, d), as many
// outputs (or vectors of one output) at a time as `limit` bytes allow.
template <typename Multiply>
at::Tensor for_outputs(const at::Tensor& rows, int64_t groups, const Optional& scale,
                       const Optional& direction, int64_t limit, const Multiply& multiply) {
  const int64_t per_group = rows.size(1) / groups;
  const int64_t size = rows.size(2);
  const int64_t bytes = std::max<int64_t>(1, 2 * groups * size * rows.element_size());
  const int64_t count = std::max<int64_t>(1, limit / bytes);  // of vectors times outputs
  const int64_t vectors = std::min(count, rows.size(0));
  const int64_t outputs = std::clamp<int64_t>(count / std::max<int64_t>(1, vectors), 1, per_group);
  const auto by_group = [&](const at::Tensor& tensor, int64_t dim) {
    return tensor.unflatten(dim, at::IntArrayRef({groups, per_group}));
  };
  at::Tensor result = at::empty_like(rows);  // dense strides are kept: columns in, columns out
  const at::Tensor source = by_group(rows, 1).transpose(0, 1);  // (G, K, n_out/G, d)
  const at::Tensor target = by_group(result, 1).transpose(0, 1);
  for (int64_t k = 0; k < rows.size(0); k += vectors) {
    for (int64_t i = 0; i < per_group; i += outputs) {
      const auto here = [&](const at::Tensor& tensor) {
        return tensor.slice(1, k, k + vectors).slice(2, i, i + outputs);
      };
      const auto channels = [&](const Optional& numbers) {
        return numbers ? Optional(by_group(*numbers, 0).slice(1, i, i + outputs)) : numbers;
      };
      const at::Tensor part = here(source).contiguous();
      at::Tensor out = multiply(part.view({groups, -1, size})).view(part.sizes());
      finish(out, part, channels(scale), channels(direction));
      here(target).copy_(out);
    }
  }
  return result;
}

}  // namespace

at::Tensor patch_gram(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      const Optional& mean, int64_t memory_limit) {
  const Geometry geometry{kernel, stride, padding, dilation, groups};
  const int64_t size = geometry.patch_size(x);
  at::Tensor gram = at::zeros({groups, size, size}, x.options());
  for_patches(x, geometry, mean, 0, memory_limit, [&](const at::Tensor& columns) {
    for (int64_t a = 0; a < size; a += kSymmetricBlock) {
      const int64_t b = std::min(a + kSymmetricBlock, size);
      at::Tensor block = gram.slice(1, 0, b).slice(2, a, b);
      block.baddbmm_(columns.slice(1, 0, b), columns.slice(1, a, b).transpose(1, 2));
    }
  });
  for (int64_t a = 0; a < size; a += kSymmetricBlock) {
    const int64_t b = std::min(a + kSymmetricBlock, size);
    gram.slice(1, a, b).slice(2, 0, a).copy_(gram.slice(1, 0, a).slice(2, a, b).transpose(1, 2));
  }
  return gram;
}

at::Tensor gram_hvp(const at::Tensor& gram, const at::Tensor& rows, const Optional& scale,
                    const Optional& direction, int64_t memory_limit) {
  return for_outputs(rows, gram.size(0), scale, direction, std::min(memory_limit, kGramBytes),
                     [&](const at::Tensor& part) { return at::bmm(part, gram); });
}

at::Tensor patch_hvp(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                     const Optional& mean, const at::Tensor& rows, const Optional& scale,
                     const Optional& direction, int64_t memory_limit) {
  const Geometry geometry{kernel, stride, padding, dilation, groups};
  const auto multiply = [&](const at::Tensor& part) {
    at::Tensor total = at::zeros_like(part);
    for_patches(x, geometry, mean, part.size(1), memory_limit, [&](const at::Tensor& columns) {
      total.baddbmm_(at::bmm(part, columns), columns.transpose(1, 2));
    });
    return total;
  };
  return for_outputs(rows, groups, scale, direction, std::min(memory_limit, kFactoredBytes),
                     multiply);
}

at::Tensor input_hvp(const at::Tensor& rows, const at::Tensor& weight, at::IntArrayRef kernel,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                     int64_t groups, const Optional& scale, const Optional& direction,
                     int64_t memory_limit) {
  const Geometry geometry{kernel, stride, padding, dilation, groups};
  const int64_t n_out = weight.size(0);
  const std::vector<int64_t> places = geometry.output_size(rows.sizes().slice(3));
  const std::vector<int64_t> zeros(kernel.size(), 0);
  int64_t place_count = 1;
  for (const int64_t count : places) {
    place_count *= count;
  }
  const int64_t input_numbers = rows.numel() / std::max<int64_t>(1, rows.size(0));
  const int64_t numbers = 2 * (rows.size(1) * n_out * place_count + input_numbers);
  const int64_t limit = std::min(memory_limit, kInputBytes);
  const int64_t bytes = std::max<int64_t>(1, numbers * rows.element_size());
  const int64_t vectors = std::max<int64_t>(1, limit / bytes);
  at::Tensor result = at::empty_like(rows);
  for (int64_t first = 0; first < rows.size(0); first += vectors) {
    const at::Tensor part = rows.slice(0, first, first + vectors).contiguous();
    const at::Tensor x = part.flatten(0, 1);
    at::Tensor z = kernel.empty() ? at::mm(x, weight.t())
                                  : at::convolution(x, weight, std::nullopt, stride, padding,
                                                    dilation, false, zeros, groups);
    z = z.contiguous().view({part.size(0), part.size(1), n_out, place_count});
    if (direction) {
      const at::Tensor along = direction->view({part.size(1), n_out, place_count});
      const at::Tensor means = z.mean({1, 3});
      for (int64_t k = 0; k < z.size(0); ++k) {  // one vector's outputs stay in the cache
        at::Tensor one = z[k];
        const at::Tensor products = at::mul(one, along).sum(at::IntArrayRef({0, 2}));
        one.sub_(means[k].unsqueeze(1));
        if (scale) {
          one.mul_(scale->unsqueeze(1));
        }
        one.addcmul_(along, products.unsqueeze(1), -1);
      }
    } else if (scale) {
      z.mul_(scale->unsqueeze(1));
    }
    at::Tensor back;
    if (kernel.empty()) {
      back = at::mm(z.view({-1, n_out}), weight);
    } else {
      std::vector<int64_t> shape = {x.size(0), n_out};
      shape.insert(shape.end(), places.begin(), places.end());
      back = std::get<0>(at::convolution_backward(z.view(shape), x, weight, std::nullopt, stride,
                                                  padding, dilation, false, zeros, groups,
                                                  {true, false, false}));
    }
    result.slice(0, first, first + vectors).copy_(back.view(part.sizes()));
  }
  return result;
}

}  // namespace lhkernels
