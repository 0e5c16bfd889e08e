// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/context.h"

namespace conclave::parity {

// kQuantised: every format that unpacks to the numbers that torch unpacked.
enum class WeightFormat { kBF16, kQuantised };

// How far a run may be from the float32 reference: relative errors are the
// norm of the difference over the norm.
struct Tolerance {
  double logits = 0;
  double hidden = 0;          // residual stream after each layer, final hidden
  double state = 0;           // convolution rows and recurrent states
  double routing_weight = 0;  // absolute, of one renormalised weight
  double routing_tie = 0;     // experts whose weights are closer may swap
};

// The one table: a backend or weight format that is added adds its row here.
inline Tolerance ToleranceOf(kernels::Backend backend, WeightFormat format) {
  constexpr Tolerance kFloat32{1e-5, 1e-5, 1e-5, 1e-5, 1e-5};
  switch (format) {
    case WeightFormat::kBF16:  // weights exact, all arithmetic in float32
    case WeightFormat::kQuantised:
      switch (backend) {
        case kernels::Backend::kCpuPlain:
          return kFloat32;
        case kernels::Backend::kCpu:
          return kFloat32;
        case kernels::Backend::kCuda:  // activations in float32
          return kFloat32;
      }
  }
  return {};
}

// Logits when rows travel as bf16, against float32 rows: 8 bits of mantissa,
// each layer rounds twice.
inline constexpr double kBf16RowsLogits = 2e-2;

// Relative error of logits where activations are int8: half a step of 127 in
// each block of 32 numbers, through every layer. Measured: see the test's
// output. A token at another expert gives several times this.
inline constexpr double kRoundedActivations = 0.05;

}  // namespace conclave::parity
