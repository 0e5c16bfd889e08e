// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/field_reader.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "boost/json/value.hpp"
#include "coordinator/http/views.h"

namespace conclave::http {

namespace json = boost::json;

FieldReader::FieldReader(const json::object& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

const json::value* FieldReader::Find(std::string_view name) {
  known_.push_back(name);
  const json::value* value = object_.if_contains({name.data(), name.size()});
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool FieldReader::Read(std::string_view name, bool* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_bool()) {
    Fail(name, "must be true or false");
    return false;
  }
  *out = value->get_bool();
  return true;
}

bool FieldReader::Read(std::string_view name, std::string* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_string()) {
    Fail(name, "must be a string");
    return false;
  }
  out->assign(value->get_string().data(), value->get_string().size());
  return true;
}

bool FieldReader::ReadNumber(std::string_view name,
                             double low,
                             double high,
                             double* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return false;
  double number = 0;
  if (value->is_double()) {
    number = value->get_double();
  } else if (value->is_int64()) {
    number = static_cast<double>(value->get_int64());
  } else if (value->is_uint64()) {
    number = static_cast<double>(value->get_uint64());
  } else {
    Fail(name, "must be a number");
    return false;
  }
  if (!(number >= low && number <= high)) {
    Fail(name,
         absl::StrCat("must be from ", low, " to ", high, ", not ", number));
    return false;
  }
  *out = number;
  return true;
}

bool FieldReader::ReadInteger(std::string_view name,
                              int64_t low,
                              int64_t high,
                              int64_t* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return false;
  int64_t number = 0;
  if (value->is_int64()) {
    number = value->get_int64();
  } else if (value->is_double() &&
             std::nearbyint(value->get_double()) == value->get_double() &&
             std::abs(value->get_double()) < 9e15) {
    number = static_cast<int64_t>(value->get_double());
  } else if (value->is_uint64()) {
    number = std::numeric_limits<int64_t>::max();
  } else {
    Fail(name, "must be an integer");
    return false;
  }
  if (number < low || number > high) {
    Fail(name,
         absl::StrCat("must be from ", low, " to ", high, ", not ", number));
    return false;
  }
  *out = number;
  return true;
}

void FieldReader::Accept(std::initializer_list<std::string_view> names) {
  known_.insert(known_.end(), names);
}

void FieldReader::Refuse(std::string_view name, std::string_view reason) {
  if (Find(name) != nullptr) Fail(name, reason);
}

void FieldReader::Fail(std::string_view name, std::string_view message) {
  Fail(
      absl::InvalidArgumentError(absl::StrCat(Path(name), ": ", Abs(message))));
}

void FieldReader::Fail(const absl::Status& status) { status_.Update(status); }

std::string FieldReader::Path(std::string_view name) const {
  return prefix_.empty() ? std::string(name)
                         : absl::StrCat(prefix_, ".", Abs(name));
}

absl::Status FieldReader::Finish() const {
  if (!status_.ok()) return status_;
  for (const auto& entry : object_) {
    const std::string_view key(entry.key().data(), entry.key().size());
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Path(key.substr(0, 128)),
                       ": unknown field; this server would not honour it"));
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave::http
