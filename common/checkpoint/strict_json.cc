// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/strict_json.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/value_stack.hpp>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

// Boost.JSON keeps the last of two equal keys in silence. This handler builds
// the same value and stops at a repeated key.
class StrictHandler {
 public:
  static constexpr size_t max_object_size = size_t{1} << 24;
  static constexpr size_t max_array_size = size_t{1} << 24;
  static constexpr size_t max_key_size = size_t{1} << 16;
  static constexpr size_t max_string_size = size_t{1} << 20;

  bool on_document_begin(json::error_code&) {
    stack_.reset();
    return true;
  }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) {
    keys_.emplace_back();
    return true;
  }
  bool on_object_end(size_t count, json::error_code&) {
    keys_.pop_back();
    stack_.push_object(count);
    return true;
  }
  bool on_array_begin(json::error_code&) { return true; }
  bool on_array_end(size_t count, json::error_code&) {
    stack_.push_array(count);
    return true;
  }
  bool on_key_part(json::string_view text, size_t, json::error_code&) {
    key_.append(text.data(), text.size());
    stack_.push_chars(text);
    return true;
  }
  bool on_key(json::string_view text, size_t, json::error_code& error) {
    key_.append(text.data(), text.size());
    if (!keys_.back().insert(key_).second) {
      duplicate_ = true;
      error = json::error::syntax;
      return false;
    }
    key_.clear();
    stack_.push_key(text);
    return true;
  }
  bool on_string_part(json::string_view text, size_t, json::error_code&) {
    stack_.push_chars(text);
    return true;
  }
  bool on_string(json::string_view text, size_t, json::error_code&) {
    stack_.push_string(text);
    return true;
  }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t value, json::string_view, json::error_code&) {
    stack_.push_int64(value);
    return true;
  }
  bool on_uint64(uint64_t value, json::string_view, json::error_code&) {
    stack_.push_uint64(value);
    return true;
  }
  bool on_double(double value, json::string_view, json::error_code&) {
    stack_.push_double(value);
    return true;
  }
  bool on_bool(bool value, json::error_code&) {
    stack_.push_bool(value);
    return true;
  }
  bool on_null(json::error_code&) {
    stack_.push_null();
    return true;
  }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

  bool duplicate() const { return duplicate_; }
  const std::string& key() const { return key_; }
  json::value Release() { return stack_.release(); }

 private:
  json::value_stack stack_;
  std::vector<std::set<std::string>> keys_;  // of the open objects
  std::string key_;
  bool duplicate_ = false;
};

}  // namespace

std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 160;
  const std::string shown(text.substr(0, std::min(text.size(), kShown)));
  return absl::StrCat(
      "\"", absl::CHexEscape(shown), text.size() > kShown ? "..." : "", "\"");
}

absl::StatusOr<json::value> ParseStrictJson(std::string_view text,
                                            const std::string& file_name) {
  try {
    json::parse_options options;
    options.max_depth = limits::kJsonDepthMax;
    json::basic_parser<StrictHandler> parser(options);
    json::error_code error;
    const size_t used =
        parser.write_some(false, text.data(), text.size(), error);
    if (parser.handler().duplicate()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_name,
                       ": the key ",
                       Quoted(parser.handler().key()),
                       " stands twice in one JSON object"));
    }
    if (!error && used < text.size()) error = json::error::extra_data;
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_name,
                       ": broken JSON at byte ",
                       used,
                       ": ",
                       error.message(),
                       "; the file is damaged or was not written whole"));
    }
    return parser.handler().Release();
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat(file_name, ": cannot hold the JSON: ", error.what()));
  }
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes) {
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored) &&
      !std::filesystem::is_regular_file(path, ignored)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a regular file"));
  }
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot open: ", std::strerror(errno)));
  }
  in.seekg(0, std::ios::end);
  const std::streamoff size = in.tellg();
  if (size > static_cast<std::streamoff>(max_bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": larger than ", max_bytes, " bytes"));
  }
  in.seekg(0);
  std::string text(static_cast<size_t>(std::max<std::streamoff>(size, 0)), 0);
  if (size < 0 || !in.read(text.data(), size)) {
    return absl::DataLossError(absl::StrCat(path, ": cannot read"));
  }
  return text;
}

}  // namespace conclave::checkpoint
