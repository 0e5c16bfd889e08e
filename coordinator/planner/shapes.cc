// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/shapes.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/dtype.h"

namespace conclave::planner {
namespace {

using checkpoint::ModelConfig;

constexpr std::array<std::pair<std::string_view, WeightFormat>, 8> kFormats = {
    {{"bf16", WeightFormat::kBf16},
     {"fp8", WeightFormat::kFp8},
     {"gptq-int4", WeightFormat::kGptqInt4},
     {"mlx3", WeightFormat::kMlx3},
     {"mlx4", WeightFormat::kMlx4},
     {"mlx5", WeightFormat::kMlx5},
     {"mlx6", WeightFormat::kMlx6},
     {"mlx8", WeightFormat::kMlx8}}};

constexpr uint64_t kBf16Bytes = 2, kF32Bytes = 4;
constexpr uint64_t kFloatColumns = 16;  // bf16: whole vectors
constexpr uint64_t kGptqGroup = 128, kMlxGroup = 64;

// Which rule of a format a linear falls under.
enum class Role { kTable, kExpert, kShared, kMixer, kGates, kMtpFc };
enum class Part { kEmbedding, kDense, kExperts, kMtp };

struct Linear {
  Role role;
  Part part;
  uint64_t rows, cols, count;
};
// Float vectors: plain ones follow the file's bf16; A_log and the norm of the
// GDN are float32 in some of the formats.
struct Vectors {
  uint64_t plain = 0, a_log = 0, gdn_norm = 0;
};

struct Inventory {
  std::vector<Linear> linears;
  Vectors main, mtp;
};

uint64_t U(int64_t value) { return static_cast<uint64_t>(value); }

void AddAttention(const ModelConfig& m, Part part, uint64_t n, Inventory& out) {
  const uint64_t h = U(m.hidden_size), dim = U(m.head_dim);
  const uint64_t query = U(m.num_attention_heads) * dim;
  const uint64_t kv = U(m.num_key_value_heads) * dim;
  out.linears.push_back({Role::kMixer, part, 2 * query, h, n});
  out.linears.push_back({Role::kMixer, part, kv, h, 2 * n});
  out.linears.push_back({Role::kMixer, part, h, query, n});
  (part == Part::kMtp ? out.mtp : out.main).plain += 2 * dim * n;
}

void AddGdn(const ModelConfig& m, uint64_t n, Inventory& out) {
  const uint64_t h = U(m.hidden_size), heads = U(m.linear_num_value_heads);
  const uint64_t values = heads * U(m.linear_value_head_dim);
  const uint64_t channels =
      values + 2 * U(m.linear_num_key_heads) * U(m.linear_key_head_dim);
  out.linears.push_back({Role::kMixer, Part::kDense, channels, h, n});
  out.linears.push_back({Role::kMixer, Part::kDense, values, h, n});
  out.linears.push_back({Role::kGates, Part::kDense, heads, h, 2 * n});
  out.linears.push_back({Role::kMixer, Part::kDense, h, values, n});
  out.main.plain += n * (U(m.linear_conv_kernel_dim) * channels + heads);
  out.main.a_log += n * heads;
  out.main.gdn_norm += n * U(m.linear_value_head_dim);
}

void AddMoe(const ModelConfig& m, Part part, uint64_t n, Inventory& out) {
  const uint64_t h = U(m.hidden_size), e = U(m.num_experts);
  const uint64_t i = U(m.moe_intermediate_size);
  const uint64_t shared = U(m.shared_expert_intermediate_size);
  const Part experts = part == Part::kMtp ? Part::kMtp : Part::kExperts;
  out.linears.push_back({Role::kGates, part, e, h, n});
  out.linears.push_back({Role::kGates, part, 1, h, n});
  out.linears.push_back({Role::kShared, part, shared, h, 2 * n});
  out.linears.push_back({Role::kShared, part, h, shared, n});
  out.linears.push_back({Role::kExpert, experts, i, h, 2 * n * e});
  out.linears.push_back({Role::kExpert, experts, h, i, n * e});
}

Inventory Take(const ModelConfig& m) {
  Inventory out;
  const uint64_t h = U(m.hidden_size), v = U(m.vocab_size);
  const uint64_t layers = U(m.num_hidden_layers);
  const auto full = static_cast<uint64_t>(
      std::count(m.full_attention.begin(), m.full_attention.end(), true));
  out.linears.push_back({Role::kTable, Part::kEmbedding, v, h, 1});
  out.linears.push_back({Role::kTable, Part::kDense, v, h, 1});
  out.main.plain = h + 2 * h * layers;
  AddGdn(m, layers - full, out);
  AddAttention(m, Part::kDense, full, out);
  AddMoe(m, Part::kDense, layers, out);
  const uint64_t mtp = U(m.mtp_num_hidden_layers);
  out.linears.push_back({Role::kMtpFc, Part::kMtp, h, 2 * h, mtp});
  out.mtp.plain += 5 * h * mtp;
  AddAttention(m, Part::kMtp, mtp, out);
  AddMoe(m, Part::kMtp, mtp, out);
  return out;
}

// 0: no MLX format.
uint64_t MlxBits(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMlx3:
      return 3;
    case WeightFormat::kMlx4:
      return 4;
    case WeightFormat::kMlx5:
      return 5;
    case WeightFormat::kMlx6:
      return 6;
    case WeightFormat::kMlx8:
      return 8;
    default:
      return 0;
  }
}

bool Quantised(WeightFormat format, const Linear& linear) {
  if (format == WeightFormat::kFp8) {
    return linear.role == Role::kExpert || linear.role == Role::kShared ||
           linear.role == Role::kMixer;
  }
  if (format == WeightFormat::kGptqInt4) return linear.part == Part::kExperts;
  return MlxBits(format) > 0;
}

// One linear of the format. `files`: with what only the files hold.
uint64_t LinearBytes(WeightFormat format, const Linear& l, bool files) {
  const uint64_t size = l.rows * l.cols;
  if (!Quantised(format, l)) return size * kBf16Bytes;
  if (const uint64_t bits = MlxBits(format); bits > 0) {
    return size * bits / 8 + 2 * kBf16Bytes * (size / kMlxGroup);
  }
  if (format == WeightFormat::kFp8) {
    return size + kBf16Bytes * U(Fp8Blocks(l.rows) * Fp8Blocks(l.cols));
  }
  const uint64_t groups = size / kGptqGroup;
  const uint64_t zeros_and_index = groups / 2 + 4 * l.cols;
  return size / 2 + 2 * groups + (files ? zeros_and_index : 0);
}

uint64_t VectorBytes(WeightFormat format, const Vectors& v, bool files) {
  if (!files) return kF32Bytes * (v.plain + v.a_log + v.gdn_norm);
  const bool mlx = MlxBits(format) > 0;
  const bool fp8 = format == WeightFormat::kFp8;
  return kBf16Bytes * v.plain + (fp8 ? kBf16Bytes : kF32Bytes) * v.a_log +
         (fp8 || mlx ? kBf16Bytes : kF32Bytes) * v.gdn_norm;
}

// docs/qwen3.5-moe 1.4 and 2.3: the same tower in every model, but for the
// width of its output.
uint64_t VisionElements(const ModelConfig& m) {
  constexpr uint64_t kWidth = 1152, kInner = 4304, kBlocks = 27;
  constexpr uint64_t kPatch = 3 * 2 * 16 * 16, kPositions = 2304;
  constexpr uint64_t kMerged = 4 * kWidth;
  const uint64_t block = 4 * kWidth + 3 * kWidth * (kWidth + 1) +
                         kWidth * (kWidth + 1) + kInner * (kWidth + 1) +
                         kWidth * (kInner + 1);
  return kWidth * (kPatch + 1) + kPositions * kWidth + kBlocks * block +
         2 * kWidth + kMerged * (kMerged + 1) +
         U(m.hidden_size) * (kMerged + 1);
}

WeightBytes Sum(const ModelConfig& m, WeightFormat format, bool files) {
  const Inventory inventory = Take(m);
  WeightBytes out;
  for (const Linear& l : inventory.linears) {
    const uint64_t one = LinearBytes(format, l, files);
    uint64_t& to = l.part == Part::kEmbedding ? out.embedding
                   : l.part == Part::kDense   ? out.dense
                   : l.part == Part::kExperts ? out.experts
                                              : out.mtp;
    to += one * l.count;
  }
  const uint64_t experts = U(m.num_hidden_layers) * U(m.num_experts);
  out.expert = experts == 0 ? 0 : out.experts / experts;
  out.dense += VectorBytes(format, inventory.main, files);
  out.mtp += VectorBytes(format, inventory.mtp, files);
  if (MlxBits(format) > 0) out.mtp = 0;
  if (files) out.vision = kBf16Bytes * VisionElements(m);
  return out;
}

struct Published {
  std::string_view name;
  int32_t layers, hidden, heads, value_heads, experts, top_k, intermediate;
};
constexpr std::array<Published, 3> kPublished = {
    {{"35b-a3b", 40, 2048, 16, 32, 256, 8, 512},
     {"122b-a10b", 48, 3072, 32, 64, 256, 8, 1024},
     {"397b-a17b", 60, 4096, 32, 64, 512, 10, 1024}}};

}  // namespace

absl::StatusOr<WeightFormat> ParseFormat(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [known, format] : kFormats) {
    if (known == name) return format;
    names.emplace_back(known);
  }
  return absl::InvalidArgumentError(absl::StrCat("format '",
                                                 std::string(name),
                                                 "' is unknown; known are ",
                                                 absl::StrJoin(names, ", ")));
}

WeightFormat FormatOf(const checkpoint::Quantisation& quantisation) {
  switch (quantisation.format) {
    case checkpoint::QuantFormat::kNone:
      break;
    case checkpoint::QuantFormat::kFp8:
      return WeightFormat::kFp8;
    case checkpoint::QuantFormat::kGptq:
      return WeightFormat::kGptqInt4;
    case checkpoint::QuantFormat::kMlx:
      for (const auto& [name, format] : kFormats) {
        const auto bits = static_cast<uint64_t>(quantisation.affine.bits);
        if (MlxBits(format) == bits) return format;
      }
      break;
  }
  return WeightFormat::kBf16;
}

std::string_view Name(WeightFormat format) {
  for (const auto& [name, known] : kFormats) {
    if (known == format) return name;
  }
  return "unknown";
}

std::vector<std::string_view> ShapeNames() {
  std::vector<std::string_view> out;
  for (const Published& p : kPublished) out.push_back(p.name);
  return out;
}

absl::StatusOr<ModelConfig> ShapeOf(std::string_view name) {
  const auto* p =
      std::find_if(kPublished.begin(), kPublished.end(), [&](const auto& one) {
        return one.name == name;
      });
  if (p == kPublished.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape '",
                     std::string(name),
                     "' is unknown; known are 35b-a3b, 122b-a10b, 397b-a17b"));
  }
  ModelConfig m;
  m.vocab_size = 248320;
  m.hidden_size = p->hidden;
  m.num_hidden_layers = p->layers;
  for (int32_t i = 0; i < p->layers; ++i) {
    m.full_attention.push_back(i % 4 == 3);
  }
  m.max_position_embeddings = 262144;
  m.num_attention_heads = p->heads;
  m.num_key_value_heads = 2;
  m.head_dim = 256;
  m.rotary_dim = 64;
  m.rope_theta = 1e7;
  m.linear_num_key_heads = 16;
  m.linear_num_value_heads = p->value_heads;
  m.linear_key_head_dim = 128;
  m.linear_value_head_dim = 128;
  m.linear_conv_kernel_dim = 4;
  m.num_experts = p->experts;
  m.num_experts_per_tok = p->top_k;
  m.moe_intermediate_size = p->intermediate;
  m.shared_expert_intermediate_size = p->intermediate;
  m.mtp_num_hidden_layers = 1;
  return m;
}

WeightBytes CheckpointBytes(const ModelConfig& shape, WeightFormat format) {
  return Sum(shape, format, true);
}

WeightBytes ResidentBytes(const ModelConfig& shape, WeightFormat format) {
  return Sum(shape, format, false);
}

int32_t ColumnMultiple(const ModelConfig& shape, WeightFormat format) {
  const uint64_t group = MlxBits(format) > 0                 ? kMlxGroup
                         : format == WeightFormat::kFp8      ? kFp8Block
                         : format == WeightFormat::kGptqInt4 ? kGptqGroup
                                                             : kFloatColumns;
  const int32_t width = shape.moe_intermediate_size;
  // Experts that are no whole number of groups stay whole.
  return U(width) % group == 0 ? static_cast<int32_t>(group) : width;
}

uint64_t KvBytesPerToken(const ModelConfig& m, int32_t element_bytes) {
  const auto full = static_cast<uint64_t>(
      std::count(m.full_attention.begin(), m.full_attention.end(), true));
  return 2 * full * U(m.num_key_value_heads) * U(m.head_dim) * U(element_bytes);
}

uint64_t StateBytes(const ModelConfig& m, int32_t element_bytes) {
  const auto full = static_cast<uint64_t>(
      std::count(m.full_attention.begin(), m.full_attention.end(), true));
  const uint64_t values =
      U(m.linear_num_value_heads) * U(m.linear_value_head_dim);
  const uint64_t channels =
      values + 2 * U(m.linear_num_key_heads) * U(m.linear_key_head_dim);
  return (U(m.num_hidden_layers) - full) *
         (values * U(m.linear_key_head_dim) * U(element_bytes) +
          channels * (U(m.linear_conv_kernel_dim) - 1) * sizeof(float));
}

}  // namespace conclave::planner
