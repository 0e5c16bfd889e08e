// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/quantisation.h"

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/strict_json.h"
#include "common/dtype.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

constexpr int32_t kGroupMax = 1024;
constexpr int32_t kGroupMultiple = 32;  // kernels take so many columns a step
constexpr int32_t kGptqBits = 4;

constexpr std::array kFp8Keys = {
    "quant_method",
    "fmt",
    "activation_scheme",
    "weight_block_size",
    "modules_to_not_convert",
};

// Options of the computation that made a GPTQ checkpoint change nothing in
// how it is read.
constexpr std::array kGptqKeys = {
    "backend",
    "batch_size",
    "bits",
    "block_name_to_quantize",
    "cache_block_outputs",
    "checkpoint_format",
    "damp_percent",
    "dataset",
    "desc_act",
    "dynamic",
    "group_size",
    "lm_head",
    "max_input_length",
    "meta",
    "model_seqlen",
    "modules_in_block_to_quantize",
    "modules_to_not_convert",
    "pack_dtype",
    "quant_method",
    "static_groups",
    "sym",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
};

std::string_view View(const json::string& text) {
  return {text.data(), text.size()};
}

template <typename Known>
void CheckKnown(const json::object& object,
                const Known& known,
                JsonFields& fields) {
  for (const auto& [name, value] : object) {
    const std::string_view key(name.data(), name.size());
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    return fields.Fail(key, "is not known; it may change how weights are read");
  }
}

// The method's name as it stands in the file, "mlx" where the keys say so.
std::string Method(const json::object& object) {
  for (const char* key : {"quant_method", "mode"}) {
    const json::value* method = object.if_contains(key);
    if (!method || !method->is_string()) continue;
    const std::string_view name = View(method->get_string());
    return name == "affine" ? "mlx" : std::string(name);
  }
  return object.contains("bits") ? "mlx" : "";
}

// "modelopt" (NVFP4): the method and what says more about it.
std::string NameOf(const json::object& object, const std::string& method) {
  std::string out = method.empty() ? "of unknown kind" : Quoted(method);
  for (const char* key : {"quant_algo", "format"}) {
    const json::value* more = object.if_contains(key);
    if (more && more->is_string()) {
      absl::StrAppend(&out, " (", std::string(View(more->get_string())), ")");
    }
  }
  return out;
}

void ReadFp8(const json::object& object, JsonFields& fields) {
  CheckKnown(object, kFp8Keys, fields);
  fields.MustBe("fmt", "e4m3");
  if (!fields.Require("weight_block_size")) return;
  fields.MustBe("weight_block_size", json::array{kFp8Block, kFp8Block});
  if (!fields.Has("activation_scheme")) return;
  fields.MustBe("activation_scheme", "dynamic");
}

void ReadGroup(JsonFields& fields, AffineFormat& out) {
  fields.Int("group_size", kGroupMultiple, kGroupMax, out.group);
  if (!fields.status().ok() || out.group % kGroupMultiple == 0) return;
  fields.Unsupported("group_size",
                     absl::StrCat(out.group,
                                  " is not supported; it must be a multiple "
                                  "of ",
                                  kGroupMultiple));
}

void ReadGptq(const json::object& object,
              JsonFields& fields,
              Quantisation& out) {
  CheckKnown(object, kGptqKeys, fields);
  fields.Int("bits", kGptqBits, kGptqBits, out.affine.bits);
  ReadGroup(fields, out.affine);
  fields.MustBe("sym", true);
  fields.MustBe("desc_act", false);
  fields.MustBe("lm_head", false);
  fields.MustBe("pack_dtype", "int32");
  if (!fields.Has("checkpoint_format")) return;
  std::string format;
  fields.Text("checkpoint_format", format);
  if (format == "gptq_v2") {
    out.gptq_zero = 8;
  } else if (format != "gptq") {
    fields.Unsupported("checkpoint_format",
                       absl::StrCat(Quoted(format),
                                    " is not supported; gptq and gptq_v2 are"));
  }
}

void ReadAffine(JsonFields& fields, AffineFormat& out) {
  fields.Int("bits", 3, 8, out.bits);
  if (fields.status().ok() && out.bits == 7) {
    fields.Unsupported("bits", "7 is not supported; 3, 4, 5, 6 and 8 are");
  }
  ReadGroup(fields, out);
  fields.MustBe("mode", "affine");
}

// "language_model.model.layers.0.mlp.gate" -> "layers.0.mlp.gate".
std::string WithoutPrefix(std::string_view module) {
  for (const std::string_view prefix : {"language_model.model.",
                                        "model.language_model.",
                                        "language_model.",
                                        "model."}) {
    if (module.starts_with(prefix)) {
      return std::string(module.substr(prefix.size()));
    }
  }
  return std::string(module);
}

void ReadMlx(const json::object& object,
             const std::string& file,
             JsonFields& fields,
             Quantisation& out) {
  ReadAffine(fields, out.affine);
  for (const auto& [name, value] : object) {
    const std::string_view key(name.data(), name.size());
    if (key == "bits" || key == "group_size" || key == "mode" ||
        key == "quant_method") {
      continue;
    }
    AffineFormat module = out.affine;
    if (const json::object* own = value.if_object()) {
      JsonFields nested(*own, file, fields.Name(key));
      ReadAffine(nested, module);
      fields.Adopt(nested.status());
    } else if (const bool* quantised = value.if_bool()) {
      if (!*quantised) module = {};
    } else {
      fields.Fail(key, "is neither a known key nor the format of a module");
    }
    out.modules[WithoutPrefix(key)] = module;
  }
}

Quantisation ReadObject(const json::object& object,
                        const std::string& key,
                        const std::string& file,
                        JsonFields& fields) {
  Quantisation out;
  JsonFields nested(object, file, fields.Name(key));
  const std::string method = Method(object);
  if (method == "fp8") {
    out.format = QuantFormat::kFp8;
    ReadFp8(object, nested);
  } else if (method == "gptq") {
    out.format = QuantFormat::kGptq;
    ReadGptq(object, nested, out);
  } else if (method == "mlx") {
    out.format = QuantFormat::kMlx;
    ReadMlx(object, file, nested, out);
  } else {
    fields.Unsupported(
        key,
        absl::StrCat("quantisation ",
                     NameOf(object, method),
                     " is not supported; use the BF16, FP8, GPTQ-Int4 or MLX "
                     "affine checkpoint of this model"));
  }
  fields.Adopt(nested.status());
  return out;
}

}  // namespace

AffineFormat Quantisation::Of(std::string_view module) const {
  const auto own = modules.find(module);
  return own == modules.end() ? affine : own->second;
}

void ReadQuantisation(JsonFields& fields,
                      const std::string& file,
                      Quantisation* out) {
  for (const char* key : {"quantization_config", "quantization"}) {
    const json::value* value = fields.Get(key);
    if (!value) continue;
    const json::object* object = value->if_object();
    if (!object) return fields.Fail(key, "must be a JSON object");
    Quantisation read = ReadObject(*object, key, file, fields);
    if (out->format != QuantFormat::kNone && !(read == *out)) {
      return fields.Fail(key, "stands in two places that say different things");
    }
    *out = std::move(read);
  }
}

}  // namespace conclave::checkpoint
