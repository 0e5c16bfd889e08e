// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json/value.hpp>
#include <string>

namespace conclave::text {

// json.dumps(value, ensure_ascii=False) of Python: ", " and ": ", keys in
// their order. The model was trained on these bytes.
std::string PythonJson(const boost::json::value& value);

// What Jinja's `value | string` gives: True, False, None, 1.5, strings raw;
// lists and objects as PythonJson.
std::string PythonText(const boost::json::value& value);

}  // namespace conclave::text
