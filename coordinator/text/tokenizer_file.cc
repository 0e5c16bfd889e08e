// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/tokenizer_file.h"

#include <array>
#include <boost/json.hpp>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/text/unicode.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr std::string_view kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|)"
    R"( ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

absl::Status Bad(const std::string& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

absl::StatusOr<json::value> ReadJson(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const auto size = static_cast<int64_t>(file.tellg());
  if (size < 0 || size > int64_t{limits::kTokenizerFileBytesMax}) {
    return Bad(path, absl::StrCat(size, " bytes are too many"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  json::error_code error;
  json::value value = json::parse(text, error, {}, options);
  if (error) return Bad(path, absl::StrCat("broken JSON: ", error.message()));
  return value;
}

// GPT-2 writes bytes as printable characters; byte -> code point.
std::array<int32_t, 256> ByteAlphabet() {
  std::array<int32_t, 256> out{};
  int32_t next = 256;
  for (int32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) ||
                           (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
    out[b] = printable ? b : next++;
  }
  return out;
}

// The bytes that a token's printable form stands for.
std::optional<std::string> ToBytes(std::string_view token) {
  static const auto* const kByteOf = [] {
    auto* map = new absl::flat_hash_map<int32_t, char>;
    const std::array<int32_t, 256> alphabet = ByteAlphabet();
    for (int b = 0; b < 256; ++b) (*map)[alphabet[b]] = static_cast<char>(b);
    return map;
  }();
  std::string out;
  while (!token.empty()) {
    const Utf8Step step = NextUtf8(token);
    const auto it = kByteOf->find(step.codepoint);
    if (step.codepoint < 0 || it == kByteOf->end()) return std::nullopt;
    out.push_back(it->second);
    token.remove_prefix(step.length);
  }
  return out;
}

std::string Text(const json::value& value, const char* pointer) {
  json::error_code error;
  const json::value* at = value.find_pointer(pointer, error);
  return at != nullptr && at->is_string() ? std::string(at->get_string()) : "";
}

// Everything but vocabulary and merges must be what this code does.
absl::Status CheckKind(const std::string& path, const json::value& root) {
  if (Text(root, "/model/type") != "BPE") {
    return Bad(path, "model.type must be \"BPE\"");
  }
  if (Text(root, "/normalizer/type") != "NFC") {
    return Bad(path, "normalizer.type must be \"NFC\"");
  }
  if (Text(root, "/pre_tokenizer/pretokenizers/0/pattern/Regex") != kPattern) {
    return Bad(path,
               "pre_tokenizer is not the expression of Qwen3.5 (with \\p{M}); "
               "other pre-tokenizers are not supported");
  }
  if (Text(root, "/pre_tokenizer/pretokenizers/1/type") != "ByteLevel" ||
      Text(root, "/decoder/type") != "ByteLevel") {
    return Bad(path, "pre_tokenizer and decoder must be ByteLevel");
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const json::value& root, TokenizerFile& out) {
  json::error_code error;
  const json::value* vocab = root.find_pointer("/model/vocab", error);
  if (vocab == nullptr || !vocab->is_object()) {
    return Bad(out.path, "model.vocab must be an object");
  }
  out.token_of.reserve(vocab->get_object().size());
  for (const auto& entry : vocab->get_object()) {
    const int64_t* id = entry.value().if_int64();
    if (id == nullptr || *id < 0 || *id >= limits::kVocabMax) {
      return Bad(
          out.path,
          absl::StrCat(
              "model.vocab[\"", std::string(entry.key()), "\"]: not an id"));
    }
    const auto bytes = ToBytes(entry.key());
    if (!bytes) {
      return Bad(out.path,
                 absl::StrCat("model.vocab[\"",
                              std::string(entry.key()),
                              "\"]: not a byte-level token"));
    }
    if (!out.token_of.try_emplace(static_cast<int32_t>(*id), *bytes).second) {
      return Bad(out.path,
                 absl::StrCat("model.vocab[\"",
                              std::string(entry.key()),
                              "\"]: id ",
                              *id,
                              " has another token already"));
    }
    out.vocabulary[*bytes] = static_cast<int32_t>(*id);
  }
  return absl::OkStatus();
}

// A merge is "a b" or ["a", "b"].
std::optional<std::pair<std::string, std::string>> ReadMerge(
    const json::value& value) {
  std::string left;
  std::string right;
  if (const json::string* text = value.if_string()) {
    const std::string_view both(*text);
    const size_t space = both.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    left = std::string(both.substr(0, space));
    right = std::string(both.substr(space + 1));
  } else if (const json::array* pair = value.if_array();
             pair != nullptr && pair->size() == 2 && (*pair)[0].is_string() &&
             (*pair)[1].is_string()) {
    left = std::string((*pair)[0].get_string());
    right = std::string((*pair)[1].get_string());
  } else {
    return std::nullopt;
  }
  const auto l = ToBytes(left);
  const auto r = ToBytes(right);
  if (!l || !r) return std::nullopt;
  return std::pair(*l, *r);
}

absl::Status ReadMerges(const json::value& root, TokenizerFile& out) {
  json::error_code error;
  const json::value* merges = root.find_pointer("/model/merges", error);
  if (merges == nullptr || !merges->is_array()) {
    return Bad(out.path, "model.merges must be a list");
  }
  for (const json::value& value : merges->get_array()) {
    auto merge = ReadMerge(value);
    if (!merge) {
      return Bad(out.path,
                 absl::StrCat("model.merges[",
                              out.merges.size(),
                              "]: neither \"a b\" nor [\"a\", \"b\"]"));
    }
    out.merges.push_back(*std::move(merge));
  }
  return absl::OkStatus();
}

absl::Status AddToken(const std::string& where,
                      int64_t id,
                      const json::value& value,
                      TokenizerFile& out) {
  const std::string content = Text(value, "/content");
  if (id < 0 || id >= limits::kVocabMax || content.empty()) {
    return Bad(out.path, absl::StrCat(where, ": needs an id and a content"));
  }
  const auto flag = [&](const char* name) {
    const json::value* at = value.as_object().if_contains(name);
    return at != nullptr && at->is_bool() && at->get_bool();
  };
  if (flag("lstrip") || flag("rstrip") || flag("single_word")) {
    return Bad(out.path,
               absl::StrCat(where,
                            ": lstrip, rstrip and single_word are not "
                            "supported"));
  }
  for (const AddedTokenEntry& token : out.added) {
    if (token.id == id && token.content == content) return absl::OkStatus();
    if (token.id == id || token.content == content) {
      return Bad(out.path, absl::StrCat(where, ": stands twice, differently"));
    }
  }
  // Some files list an added token in the vocabulary too.
  const auto token = out.token_of.find(static_cast<int32_t>(id));
  if (token != out.token_of.end() && token->second != content) {
    return Bad(out.path,
               absl::StrCat(where, ": id ", id, " has a token in model.vocab"));
  }
  out.added.push_back({.id = static_cast<int32_t>(id),
                       .content = content,
                       .special = flag("special")});
  return absl::OkStatus();
}

absl::Status ReadAdded(const json::value& root, TokenizerFile& out) {
  const json::value* list = root.as_object().if_contains("added_tokens");
  if (list == nullptr || !list->is_array()) {
    return Bad(out.path, "added_tokens must be a list");
  }
  for (const json::value& value : list->get_array()) {
    const json::value* id =
        value.is_object() ? value.get_object().if_contains("id") : nullptr;
    RETURN_IF_ERROR(
        AddToken(absl::StrCat("added_tokens[", out.added.size(), "]"),
                 id != nullptr && id->is_int64() ? id->get_int64() : -1,
                 value.is_object() ? value : json::value(json::object()),
                 out));
  }
  return absl::OkStatus();
}

// Tokens that only tokenizer_config.json lists. The file may be absent.
absl::Status ReadMoreAdded(const std::string& path, TokenizerFile& out) {
  auto root = ReadJson(path);
  if (absl::IsNotFound(root.status())) return absl::OkStatus();
  RETURN_IF_ERROR(root.status());
  json::error_code error;
  const json::value* map = root->find_pointer("/added_tokens_decoder", error);
  if (map == nullptr || !map->is_object()) return absl::OkStatus();
  for (const auto& entry : map->get_object()) {
    int64_t id = -1;
    if (!absl::SimpleAtoi(std::string(entry.key()), &id)) id = -1;
    RETURN_IF_ERROR(AddToken(
        absl::StrCat(
            path, ": added_tokens_decoder[", std::string(entry.key()), "]"),
        id,
        entry.value().is_object() ? entry.value() : json::value(json::object()),
        out));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerFile> ReadTokenizerFile(const std::string& folder) {
  TokenizerFile out;
  out.path = absl::StrCat(folder, "/tokenizer.json");
  ASSIGN_OR_RETURN(const json::value root, ReadJson(out.path));
  if (!root.is_object()) return Bad(out.path, "must be a JSON object");
  RETURN_IF_ERROR(CheckKind(out.path, root));
  RETURN_IF_ERROR(ReadVocabulary(root, out));
  RETURN_IF_ERROR(ReadMerges(root, out));
  RETURN_IF_ERROR(ReadAdded(root, out));
  RETURN_IF_ERROR(ReadMoreAdded(folder + "/tokenizer_config.json", out));
  return out;
}

}  // namespace conclave::text
