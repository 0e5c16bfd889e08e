// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/json_text.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/json/basic_parser_impl.hpp"
#include "boost/json/parse.hpp"
#include "common/limits.h"
#include "coordinator/http/utf8.h"
#include "coordinator/http/views.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

// Looks for keys that stand twice; the library would keep the last in silence.
class KeyHandler {
 public:
  static constexpr size_t max_object_size = SIZE_MAX;
  static constexpr size_t max_array_size = SIZE_MAX;
  static constexpr size_t max_key_size = SIZE_MAX;
  static constexpr size_t max_string_size = SIZE_MAX;
  using Error = json::error_code;

  bool on_document_begin(Error&) { return true; }
  bool on_document_end(Error&) { return true; }
  bool on_object_begin(Error&) {
    keys_.emplace_back();
    return true;
  }
  bool on_object_end(size_t, Error&) {
    keys_.pop_back();
    return true;
  }
  bool on_array_begin(Error&) { return true; }
  bool on_array_end(size_t, Error&) { return true; }
  bool on_key_part(json::string_view part, size_t, Error&) {
    key_.append(part.data(), part.size());
    return true;
  }
  bool on_key(json::string_view part, size_t, Error& error) {
    key_.append(part.data(), part.size());
    if (!keys_.back().insert(key_).second) {
      duplicate = key_;
      error = json::error::syntax;
      return false;
    }
    key_.clear();
    return true;
  }
  bool on_string_part(json::string_view, size_t, Error&) { return true; }
  bool on_string(json::string_view, size_t, Error&) { return true; }
  bool on_number_part(json::string_view, Error&) { return true; }
  bool on_int64(int64_t, json::string_view, Error&) { return true; }
  bool on_uint64(uint64_t, json::string_view, Error&) { return true; }
  bool on_double(double, json::string_view, Error&) { return true; }
  bool on_bool(bool, Error&) { return true; }
  bool on_null(Error&) { return true; }
  bool on_comment_part(json::string_view, Error&) { return true; }
  bool on_comment(json::string_view, Error&) { return true; }

  std::string duplicate;

 private:
  std::vector<absl::flat_hash_set<std::string>> keys_;
  std::string key_;
};

absl::Status Error(std::string_view what, size_t at, std::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(Abs(what), ": byte ", at, ": ", Abs(why)));
}

absl::Status CheckText(std::string_view text,
                       std::string_view what,
                       const json::parse_options& options) {
  if (const size_t at = FirstInvalidUtf8(text); at != text.npos) {
    return Error(what, at, "not UTF-8");
  }
  json::basic_parser<KeyHandler> parser(options);
  json::error_code error;
  size_t at = parser.write_some(false, text.data(), text.size(), error);
  if (!parser.handler().duplicate.empty()) {
    return Error(what,
                 at,
                 absl::StrCat("the key \"",
                              parser.handler().duplicate.substr(0, 64),
                              "\" stands twice"));
  }
  if (error == json::error::too_deep) {
    return Error(
        what, at, absl::StrCat("nested deeper than ", limits::kJsonDepthMax));
  }
  if (error) return Error(what, at, absl::StrCat("no JSON: ", error.message()));
  if (at < text.size()) return Error(what, at, "text after the JSON value");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<json::value> ParseJson(std::string_view text,
                                      std::string_view what) {
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  try {
    if (absl::Status status = CheckText(text, what, options); !status.ok()) {
      return status;
    }
    json::error_code error;
    json::value value = json::parse(
        {text.data(), text.size()}, error, json::storage_ptr(), options);
    if (error) return Error(what, 0, error.message());
    return value;
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(Abs(what), ": could not be parsed: ", e.what()));
  }
}

}  // namespace conclave::http
