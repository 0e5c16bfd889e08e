// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "boost/json/object.hpp"

namespace conclave::http {

// Reads the fields of one JSON object and keeps the first error. An absent or
// null field leaves *out alone. Every message starts with the field's path:
// "messages[2].role: must be a string". Views the object.
class FieldReader {
 public:
  // prefix: "" for the body, else "messages[2]".
  FieldReader(const boost::json::object& object, std::string prefix);

  // The value, nullptr if absent or null; the field counts as known.
  const boost::json::value* Find(std::string_view name);

  // True when the field was there and right.
  bool Read(std::string_view name, bool* out);
  bool Read(std::string_view name, std::string* out);
  bool ReadNumber(std::string_view name, double low, double high, double* out);
  bool ReadInteger(std::string_view name,
                   int64_t low,
                   int64_t high,
                   int64_t* out);

  // Fields that change nothing in the reply and are accepted as they are.
  void Accept(std::initializer_list<std::string_view> names);
  // A field that we know and cannot honour: refused with the reason.
  void Refuse(std::string_view name, std::string_view reason);

  void Fail(std::string_view name, std::string_view message);
  void Fail(const absl::Status& status);
  std::string Path(std::string_view name) const;
  bool ok() const { return status_.ok(); }

  // The first error, or a complaint about a field that nobody asked for.
  absl::Status Finish() const;

 private:
  const boost::json::object& object_;
  std::string prefix_;
  std::vector<std::string_view> known_;
  absl::Status status_;
};

}  // namespace conclave::http
