// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/model_config.h"

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/json_fields.h"
#include "common/checkpoint/model_config_keys.h"
#include "common/checkpoint/sha256.h"
#include "common/checkpoint/strict_json.h"
#include "common/dtype.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

// Bounds of what is no contract of its own; they keep every product of two
// sizes within 64 bits.
constexpr int32_t kHeadsMax = 4096;
constexpr int32_t kHeadDimMax = 1024;
constexpr int32_t kConvKernelMax = 16;
constexpr int32_t kPositionsMax = 1 << 24;
constexpr int32_t kMtpLayersMax = 16;

template <typename Keys>
bool In(const Keys& keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

template <typename Known>
void CheckKnown(const json::object& object,
                const Known& known,
                bool bookkeeping,
                JsonFields& fields) {
  std::vector<std::string> unknown;
  for (const auto& [name, value] : object) {
    const std::string_view key(name.data(), name.size());
    if (In(known, key) || (bookkeeping && In(kIgnoredKeys, key))) continue;
    constexpr size_t kListed = 20;
    if (unknown.size() < kListed) unknown.push_back(Quoted(key));
  }
  if (unknown.empty()) return;
  fields.Fail("",
              absl::StrCat("unknown keys ",
                           absl::StrJoin(unknown, ", "),
                           "; a key that changes what the model computes must "
                           "not be skipped, so each one has to be known"));
}

void CheckModelType(JsonFields& fields, bool nested_text) {
  std::string type;
  fields.Text("model_type", type);
  if (!fields.status().ok() || type == "qwen3_5_moe_text") return;
  if (type == "qwen3_5_moe" && !nested_text) return;
  fields.Unsupported(
      "model_type",
      absl::StrCat(Quoted(type), " is not supported; only qwen3_5_moe is"));
}

// What the code takes for granted about the architecture.
void CheckAssumptions(JsonFields& fields) {
  fields.MustBe("attention_bias", false);
  fields.MustBe("attn_output_gate", true);
  fields.MustBe("hidden_act", "silu");
  fields.MustBe("mlp_only_layers", json::array());
  fields.MustBe("decoder_sparse_step", 1);
  fields.MustBe("norm_topk_prob", true);
  fields.MustBe("mtp_use_dedicated_embeddings", false);
  fields.MustBe("tie_word_embeddings", false);
  fields.MustBe("use_sliding_window", false);
}

void ReadSizes(JsonFields& fields, ModelConfig& c) {
  fields.Int("vocab_size", 1, limits::kVocabMax, c.vocab_size);
  fields.Int("hidden_size", 1, limits::kHiddenMax, c.hidden_size);
  fields.Int("num_hidden_layers", 1, limits::kLayersMax, c.num_hidden_layers);
  double eps = 0;
  fields.Real("rms_norm_eps", 1e-12, 1e-1, eps);
  c.rms_norm_eps = static_cast<float>(eps);
  fields.Int(
      "max_position_embeddings", 1, kPositionsMax, c.max_position_embeddings);
  fields.Int("num_attention_heads", 1, kHeadsMax, c.num_attention_heads);
  fields.Int("num_key_value_heads", 1, kHeadsMax, c.num_key_value_heads);
  fields.Int("head_dim", 2, kHeadDimMax, c.head_dim);
  fields.Int("linear_num_key_heads", 1, kHeadsMax, c.linear_num_key_heads);
  fields.Int("linear_num_value_heads", 1, kHeadsMax, c.linear_num_value_heads);
  fields.Int("linear_key_head_dim", 1, kHeadDimMax, c.linear_key_head_dim);
  fields.Int("linear_value_head_dim", 1, kHeadDimMax, c.linear_value_head_dim);
  fields.Int(
      "linear_conv_kernel_dim", 2, kConvKernelMax, c.linear_conv_kernel_dim);
  fields.Int("num_experts", 1, limits::kExpertsMax, c.num_experts);
  fields.Int("num_experts_per_tok", 1, limits::kTopKMax, c.num_experts_per_tok);
  fields.Int(
      "moe_intermediate_size", 1, limits::kHiddenMax, c.moe_intermediate_size);
  fields.Int("shared_expert_intermediate_size",
             1,
             limits::kHiddenMax,
             c.shared_expert_intermediate_size);
  if (fields.Has("mtp_num_hidden_layers")) {
    fields.Int(
        "mtp_num_hidden_layers", 0, kMtpLayersMax, c.mtp_num_hidden_layers);
  }
}

void CheckDivides(JsonFields& fields,
                  std::string_view key,
                  int32_t count,
                  std::string_view by_key,
                  int32_t by) {
  if (by == 0 || count % by == 0) return;
  fields.Fail(
      key,
      absl::StrCat(
          count, " is no multiple of ", std::string(by_key), " (", by, ")"));
}

void CheckRelations(JsonFields& fields, const ModelConfig& c) {
  CheckDivides(fields,
               "num_attention_heads",
               c.num_attention_heads,
               "num_key_value_heads",
               c.num_key_value_heads);
  CheckDivides(fields,
               "linear_num_value_heads",
               c.linear_num_value_heads,
               "linear_num_key_heads",
               c.linear_num_key_heads);
  if (c.num_experts_per_tok > c.num_experts) {
    fields.Fail("num_experts_per_tok",
                absl::StrCat(c.num_experts_per_tok,
                             " is more than num_experts (",
                             c.num_experts,
                             ")"));
  }
}

void ReadLayerTypes(JsonFields& fields, ModelConfig& c) {
  int32_t interval = 0;
  if (fields.Has("full_attention_interval")) {
    fields.Int("full_attention_interval", 1, limits::kLayersMax, interval);
  }
  const auto derived = [&](int32_t layer) {
    return (layer + 1) % interval == 0;
  };
  const json::value* value = fields.Get("layer_types");
  if (!fields.status().ok()) return;
  if (!value) {
    if (!fields.Require("full_attention_interval")) return;
    for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
      c.full_attention.push_back(derived(i));
    }
    return;
  }
  const json::array* types = value->if_array();
  if (!types || types->size() != static_cast<size_t>(c.num_hidden_layers)) {
    return fields.Fail("layer_types",
                       absl::StrCat("must be a list of num_hidden_layers (",
                                    c.num_hidden_layers,
                                    ") words"));
  }
  for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
    const json::string* word = (*types)[i].if_string();
    const bool full = word && *word == "full_attention";
    if (!full && !(word && *word == "linear_attention")) {
      return fields.Fail(absl::StrCat("layer_types[", i, "]"),
                         "must be \"linear_attention\" or \"full_attention\"");
    }
    if (interval > 0 && full != derived(i)) {
      return fields.Fail(
          absl::StrCat("layer_types[", i, "]"),
          absl::StrCat("contradicts full_attention_interval (", interval, ")"));
    }
    c.full_attention.push_back(full);
  }
}

struct Rope {
  double theta = 0;
  double factor = 0;
};

// One object that may carry theta, partial factor and the rope type. A value
// that stands in two places must be the same in both.
void ReadRopeObject(JsonFields& fields, Rope& rope) {
  for (const char* key : {"rope_type", "type"}) {
    if (!fields.Has(key)) continue;
    std::string type;
    fields.Text(key, type);
    if (type == "default") continue;
    fields.Unsupported(key,
                       absl::StrCat("rope_type ",
                                    Quoted(type),
                                    " is not supported; only \"default\" is "
                                    "(contexts within "
                                    "max_position_embeddings)"));
  }
  const auto read = [&](const char* key, double min, double max, double& out) {
    if (!fields.Has(key)) return;
    double value = 0;
    fields.Real(key, min, max, value);
    if (out != 0 && value != out) {
      fields.Fail(key, "stands in two places with different values");
    }
    out = value;
  };
  read("rope_theta", 1, 1e15, rope.theta);
  read("partial_rotary_factor", 1e-3, 1, rope.factor);
}

absl::Status ReadRope(JsonFields& fields,
                      const std::string& file,
                      ModelConfig& c) {
  Rope rope;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const json::value* value = fields.Get(key);
    if (!value) continue;
    const json::object* object = value->if_object();
    if (!object) {
      fields.Fail(key, "must be a JSON object");
      return fields.status();
    }
    JsonFields nested(*object, file, fields.Name(key));
    ReadRopeObject(nested, rope);
    CheckKnown(*object, kRopeKeys, /*bookkeeping=*/false, nested);
    RETURN_IF_ERROR(nested.status());
  }
  ReadRopeObject(fields, rope);
  RETURN_IF_ERROR(fields.status());
  if (rope.theta == 0) fields.Fail("rope_theta", "is missing");
  if (rope.factor == 0) fields.Fail("partial_rotary_factor", "is missing");
  const double dims = c.head_dim * rope.factor;
  if (dims < 2 || dims != std::floor(dims) || std::fmod(dims, 2) != 0) {
    fields.Fail("partial_rotary_factor",
                absl::StrCat("times head_dim gives ",
                             dims,
                             " rotary dimensions; they must be even"));
  }
  c.rope_theta = rope.theta;
  c.rotary_dim = static_cast<int32_t>(dims);
  return fields.status();
}

// Columns of an expert that move together: those of one scale of down_proj.
int32_t ColumnMultiple(const ModelConfig& c) {
  constexpr int32_t kFloat = 16;
  int32_t multiple = kFloat;
  switch (c.quantisation.format) {
    case QuantFormat::kNone:
      return kFloat;
    case QuantFormat::kFp8:
      multiple = kFp8Block;
      break;
    case QuantFormat::kGptq:
      multiple = c.quantisation.affine.group;
      break;
    case QuantFormat::kMlx:
      for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
        const AffineFormat down = c.quantisation.Of(
            absl::StrCat("layers.", i, ".mlp.switch_mlp.down_proj"));
        if (down.bits > 0) multiple = std::lcm(multiple, down.group);
      }
      break;
  }
  // Experts that are no whole number of scales stay whole.
  const int32_t whole = c.moe_intermediate_size;
  return whole % multiple == 0 ? multiple : whole;
}

}  // namespace

ExpertShape ModelConfig::expert_shape() const {
  return {.layers = num_hidden_layers,
          .experts = num_experts,
          .intermediate = moe_intermediate_size,
          .hidden = hidden_size,
          .column_multiple = ColumnMultiple(*this)};
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text,
                                             std::string_view file_name) {
  const std::string file(file_name);
  ASSIGN_OR_RETURN(const json::value document, ParseStrictJson(text, file));
  const json::object* outer = document.if_object();
  if (!outer) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": must hold a JSON object"));
  }
  const json::object* model = outer;
  JsonFields top(*outer, file, "");
  ModelConfig config;
  ReadQuantisation(top, file, &config.quantisation);
  CheckModelType(top, /*nested_text=*/false);
  const bool nested = top.Has("text_config");
  if (nested) {
    model = top.Get("text_config")->if_object();
    if (!model) top.Fail("text_config", "must be a JSON object");
    top.MustBe("tie_word_embeddings", false);
    CheckKnown(*outer, kOuterKeys, /*bookkeeping=*/true, top);
  }
  RETURN_IF_ERROR(top.status());

  JsonFields fields(*model, file, nested ? "text_config" : "");
  ReadQuantisation(fields, file, &config.quantisation);
  if (nested) CheckModelType(fields, /*nested_text=*/true);
  ReadSizes(fields, config);
  CheckRelations(fields, config);
  CheckAssumptions(fields);
  CheckKnown(*model, kModelKeys, /*bookkeeping=*/true, fields);
  RETURN_IF_ERROR(fields.status());
  ReadLayerTypes(fields, config);
  RETURN_IF_ERROR(ReadRope(fields, file, config));
  top.TokenIds("eos_token_id", config.vocab_size, config.eos_token_ids);
  fields.TokenIds("eos_token_id", config.vocab_size, config.eos_token_ids);
  RETURN_IF_ERROR(top.status());
  RETURN_IF_ERROR(fields.status());
  config.config_sha256 = absl::BytesToHexString(Sha256(text));
  return config;
}

absl::StatusOr<std::vector<int32_t>> ParseEosTokenIds(
    std::string_view text, std::string_view file_name, int32_t vocab_size) {
  const std::string file(file_name);
  ASSIGN_OR_RETURN(const json::value document, ParseStrictJson(text, file));
  const json::object* object = document.if_object();
  if (!object) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": must hold a JSON object"));
  }
  JsonFields fields(*object, file, "");
  std::vector<int32_t> ids;
  fields.TokenIds("eos_token_id", vocab_size, ids);
  RETURN_IF_ERROR(fields.status());
  return ids;
}

}  // namespace conclave::checkpoint
