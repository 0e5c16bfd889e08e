// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "boost/json/value.hpp"
#include "coordinator/http/field_reader.h"
#include "coordinator/http/openai.h"

namespace conclave::http {

// Fields that chat and completions share: model, stream, sampling, stop.
// Fills `out` but its requests, and `request` but its prompt.
void ReadSharedFields(FieldReader& fields,
                      const ParseOptions& options,
                      ApiRequest* out,
                      GenerateRequest* request);

// "messages" and "tools" of a chat request.
std::vector<Message> ReadMessages(FieldReader& fields);
std::vector<Tool> ReadTools(FieldReader& fields);

}  // namespace conclave::http
