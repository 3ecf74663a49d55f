// See hvp.h. Chunks of patches and of vectors keep the workspace within memory_limit bytes.
#include "hvp.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "patches.h"

namespace lhkernels {
namespace {

constexpr int64_t kSymmetricBlock = 192;  // only blocks on and above the diagonal are computed
constexpr int64_t kVectorBytes = 16 << 20;

using Optional = std::optional<at::Tensor>;

// As many rows at a time as the limit allows; `numbers` is what one vector takes.
template <typename Body>
void for_vectors(const at::Tensor& rows, at::Tensor& result, int64_t numbers, int64_t memory_limit,
                 const Body& body) {
  const int64_t limit = std::min(memory_limit, kVectorBytes);
  const int64_t bytes = std::max<int64_t>(1, numbers * rows.element_size());
  const int64_t count = std::max<int64_t>(1, limit / bytes);
  for (int64_t first = 0; first < rows.size(0); first += count) {
    const int64_t length = std::min(count, rows.size(0) - first);
    at::Tensor out = result.narrow(0, first, length);
    body(rows.narrow(0, first, length).contiguous(), out);
  }
}

// (K, n_out, d) as (G, K * n_out/G, d); a view where there is one group.
at::Tensor split_groups(const at::Tensor& rows, int64_t groups) {
  return rows.unflatten(1, at::IntArrayRef({groups, -1})).transpose(0, 1).flatten(1, 2);
}

at::Tensor join_groups(const at::Tensor& by_group, at::IntArrayRef shape) {
  return by_group.unflatten(1, at::IntArrayRef({shape[0], -1})).transpose(0, 1).reshape(shape);
}

// The batch norm's part: out <- scale out - direction (direction . rows).
void finish(at::Tensor& out, const at::Tensor& rows, const Optional& scale,
            const Optional& direction) {
  if (scale) {
    out.mul_(scale->unsqueeze(1));
  }
  if (direction) {
    const at::Tensor products = at::bmm(rows.transpose(0, 1), direction->unsqueeze(2));
    at::Tensor by_channel = out.transpose(0, 1);
    by_channel.baddbmm_(products, direction->unsqueeze(1), 1, -1);
  }
}

at::Tensor empty_result(const at::Tensor& rows) {
  return at::empty(rows.sizes(), rows.options(), at::MemoryFormat::Contiguous);
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
  const int64_t groups = gram.size(0);
  at::Tensor result = empty_result(rows);
  for_vectors(rows, result, 2 * rows.size(1) * rows.size(2), memory_limit,
              [&](const at::Tensor& part, at::Tensor& out) {
                if (groups == 1) {
                  at::Tensor flat = out.view({-1, rows.size(2)});
                  at::mm_out(flat, part.view({-1, rows.size(2)}), gram[0]);
                } else {
                  const at::Tensor products = at::bmm(split_groups(part, groups), gram);
                  out.copy_(join_groups(products, part.sizes()));
                }
                finish(out, part, scale, direction);
              });
  return result;
}

at::Tensor patch_hvp(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                     const Optional& mean, const at::Tensor& rows, const Optional& scale,
                     const Optional& direction, int64_t memory_limit) {
  const Geometry geometry{kernel, stride, padding, dilation, groups};
  at::Tensor result = empty_result(rows);
  for_vectors(rows, result, 2 * rows.size(1) * rows.size(2), memory_limit,
              [&](const at::Tensor& part, at::Tensor& out) {
                const at::Tensor by_group = split_groups(part, groups);
                at::Tensor total = at::zeros(by_group.sizes(), by_group.options());
                for_patches(x, geometry, mean, by_group.size(1), memory_limit,
                            [&](const at::Tensor& columns) {
                              const at::Tensor z = at::bmm(by_group, columns);
                              total.baddbmm_(z, columns.transpose(1, 2));
                            });
                out.copy_(join_groups(total, part.sizes()));
                finish(out, part, scale, direction);
              });
  return result;
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
  at::Tensor result = empty_result(rows);
  const auto apply = [&](const at::Tensor& part, at::Tensor& out) {
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
        const at::Tensor products = at::mul(one, along).sum({0, 2});
        one.sub_(means[k].unsqueeze(1));
        if (scale) {
          one.mul_(scale->unsqueeze(1));
        }
        one.addcmul_(along, products.unsqueeze(1), -1);
      }
    } else if (scale) {
      z.mul_(scale->unsqueeze(1));
    }
    if (kernel.empty()) {
      at::Tensor flat = out.view({-1, weight.size(1)});
      at::mm_out(flat, z.view({-1, n_out}), weight);
    } else {
      std::vector<int64_t> shape = {x.size(0), n_out};
      shape.insert(shape.end(), places.begin(), places.end());
      out.copy_(std::get<0>(at::convolution_backward(
                                z.view(shape), x, weight, std::nullopt, stride, padding, dilation,
                                false, zeros, groups, {true, false, false}))
                    .view(part.sizes()));
    }
  };
  for_vectors(rows, result, numbers, memory_limit, apply);
  return result;
}

}  // namespace lhkernels
