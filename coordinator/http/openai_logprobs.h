// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "boost/json/value.hpp"
#include "coordinator/schedule/request.h"

namespace conclave::http {

// The two shapes of log probabilities. Tokens that are no whole UTF-8 show
// U+FFFD; chat's "bytes" tells what they are.
boost::json::value ChatLogprobs(const std::vector<TokenLogprob>& logprobs);
boost::json::value CompletionLogprobs(
    const std::vector<TokenLogprob>& logprobs);

}  // namespace conclave::http
