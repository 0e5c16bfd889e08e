// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace conclave::checkpoint {

// Reads typed, bounded fields of one JSON object and keeps the first error,
// which names file and field. A field that is null counts as left out.
class JsonFields {
 public:
  // `where` is "" or the object's own name, e.g. "text_config".
  JsonFields(const boost::json::object& object,
             std::string file,
             std::string where)
      : object_(object), file_(std::move(file)), where_(std::move(where)) {}

  bool Has(std::string_view key) const { return Get(key) != nullptr; }
  const boost::json::value* Get(std::string_view key) const;

  void Int(std::string_view key, int32_t min, int32_t max, int32_t& out);
  void Real(std::string_view key, double min, double max, double& out);
  void Text(std::string_view key, std::string& out);
  // One token id or a list of them, each in [0, vocab_size).
  void TokenIds(std::string_view key,
                int32_t vocab_size,
                std::vector<int32_t>& out);
  // An error unless the field is left out or has exactly this value.
  void MustBe(std::string_view key, const boost::json::value& expected);

  // Require: an error that the field is missing.
  bool Require(std::string_view key);
  void Fail(std::string_view key, const std::string& why);
  void Unsupported(std::string_view key, const std::string& why);
  // The error of an object inside of this one.
  void Adopt(const absl::Status& nested) { Keep(nested); }
  const absl::Status& status() const { return status_; }
  std::string Name(std::string_view key) const;

 private:
  void Keep(absl::Status status);

  const boost::json::object& object_;
  std::string file_;
  std::string where_;
  absl::Status status_;
};

}  // namespace conclave::checkpoint
