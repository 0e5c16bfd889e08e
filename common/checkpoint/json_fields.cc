// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/json_fields.h"

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/strict_json.h"
#include "common/limits.h"

namespace conclave::checkpoint {
namespace {

std::string Shown(const boost::json::value& value) {
  std::string text = boost::json::serialize(value);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return text;
}

}  // namespace

std::string JsonFields::Name(std::string_view key) const {
  const char* dot = where_.empty() || key.empty() ? "" : ".";
  return absl::StrCat(where_, dot, std::string(key));
}

void JsonFields::Keep(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void JsonFields::Fail(std::string_view key, const std::string& why) {
  const std::string name = Name(key);
  Keep(absl::InvalidArgumentError(
      absl::StrCat(file_, ": ", name, name.empty() ? "" : ": ", why)));
}

void JsonFields::Unsupported(std::string_view key, const std::string& why) {
  Keep(absl::UnimplementedError(
      absl::StrCat(file_, ": ", Name(key), ": ", why)));
}

const boost::json::value* JsonFields::Get(std::string_view key) const {
  const boost::json::value* value =
      object_.if_contains(boost::json::string_view(key.data(), key.size()));
  return value && !value->is_null() ? value : nullptr;
}

bool JsonFields::Require(std::string_view key) {
  if (Has(key)) return true;
  Fail(key, "is missing");
  return false;
}

void JsonFields::Int(std::string_view key,
                     int32_t min,
                     int32_t max,
                     int32_t& out) {
  if (!Require(key)) return;
  const boost::json::value& value = *Get(key);
  const int64_t* number = value.if_int64();
  if (!number || *number < min || *number > max) {
    Fail(key,
         absl::StrCat("must be a whole number in [",
                      min,
                      ", ",
                      max,
                      "], is ",
                      Shown(value)));
    return;
  }
  out = static_cast<int32_t>(*number);
}

void JsonFields::Real(std::string_view key,
                      double min,
                      double max,
                      double& out) {
  if (!Require(key)) return;
  const boost::json::value& value = *Get(key);
  double number = NAN;
  if (value.is_double()) number = value.get_double();
  if (value.is_int64()) number = static_cast<double>(value.get_int64());
  if (!(number >= min && number <= max)) {
    Fail(key,
         absl::StrCat(
             "must be a number in [", min, ", ", max, "], is ", Shown(value)));
    return;
  }
  out = number;
}

void JsonFields::Text(std::string_view key, std::string& out) {
  if (!Require(key)) return;
  const boost::json::string* text = Get(key)->if_string();
  if (!text) return Fail(key, absl::StrCat("must be a string"));
  out.assign(text->data(), text->size());
}

void JsonFields::TokenIds(std::string_view key,
                          int32_t vocab_size,
                          std::vector<int32_t>& out) {
  const boost::json::value* value = Get(key);
  if (!value) return;
  constexpr size_t kIdsMax = 64;
  const boost::json::array one = {*value};
  const boost::json::array& ids = value->is_array() ? value->get_array() : one;
  if (ids.size() > kIdsMax) {
    return Fail(key, absl::StrCat("has more than ", kIdsMax, " ids"));
  }
  out.clear();
  for (const boost::json::value& id : ids) {
    const int64_t* number = id.if_int64();
    if (!number || *number < 0 || *number >= vocab_size) {
      return Fail(
          key,
          absl::StrCat(
              "must hold token ids in [0, ", vocab_size, "), has ", Shown(id)));
    }
    out.push_back(static_cast<int32_t>(*number));
  }
}

void JsonFields::MustBe(std::string_view key,
                        const boost::json::value& expected) {
  const boost::json::value* value = Get(key);
  if (!value || *value == expected) return;
  Unsupported(
      key,
      absl::StrCat(
          "is ", Shown(*value), "; only ", Shown(expected), " is supported"));
}

}  // namespace conclave::checkpoint
