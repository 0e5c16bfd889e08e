// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>

namespace conclave::text {

// The schemas of a tool's parameters by name, from the JSON schema of all of
// them; empty if it declares none.
boost::json::object ToolProperties(std::string_view parameters);

// The JSON of a parameter's raw text, by the parameter's JSON schema (null:
// not declared). Strings stay raw; other types are taken as the JSON that they
// are, digit by digit, or as Python's True, False, None; what does not fit the
// type becomes a string.
std::string ToolValueJson(std::string_view raw,
                          const boost::json::value* schema);

}  // namespace conclave::text
