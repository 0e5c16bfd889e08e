// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/openai_logprobs.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "coordinator/http/utf8.h"

namespace conclave::http {
namespace {

namespace json = boost::json;

// JSON has no infinities; this is what other servers write.
double Finite(float logprob) {
  return logprob > -9999.0f ? static_cast<double>(logprob) : -9999.0;
}

json::object ChatToken(std::string_view bytes, double logprob) {
  json::array list;
  for (const char byte : bytes) list.push_back(static_cast<uint8_t>(byte));
  json::object out;
  out["token"] = ToUtf8Lossy(bytes);
  out["logprob"] = logprob;
  out["bytes"] = std::move(list);
  return out;
}

std::string_view TopBytes(const TokenLogprob& token, size_t i) {
  return i < token.top_bytes.size() ? std::string_view(token.top_bytes[i])
                                    : std::string_view();
}

}  // namespace

json::value ChatLogprobs(const std::vector<TokenLogprob>& logprobs) {
  json::array content;
  for (const TokenLogprob& token : logprobs) {
    json::object one =
        ChatToken(token.bytes, Finite(token.logprob.value_or(0.0f)));
    json::array top;
    for (size_t i = 0; i < token.top.size(); ++i) {
      top.push_back(ChatToken(TopBytes(token, i), Finite(token.top[i].second)));
    }
    one["top_logprobs"] = std::move(top);
    content.push_back(std::move(one));
  }
  json::object out;
  out["content"] = std::move(content);
  return out;
}

json::value CompletionLogprobs(const std::vector<TokenLogprob>& logprobs) {
  json::array tokens, token_logprobs, tops, offsets;
  for (const TokenLogprob& token : logprobs) {
    const std::string text = ToUtf8Lossy(token.bytes);
    tokens.push_back(json::string_view(text.data(), text.size()));
    offsets.push_back(token.text_offset);
    if (!token.logprob.has_value()) {  // the prompt's first
      token_logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    token_logprobs.push_back(Finite(*token.logprob));
    // Tokens that look alike share a key; the likeliest comes first and stays.
    json::object top;
    for (size_t i = 0; i < token.top.size(); ++i) {
      top.emplace(ToUtf8Lossy(TopBytes(token, i)), Finite(token.top[i].second));
    }
    if (!token.top.empty()) top.emplace(text, Finite(*token.logprob));
    tops.push_back(std::move(top));
  }
  json::object out;
  out["tokens"] = std::move(tokens);
  out["token_logprobs"] = std::move(token_logprobs);
  out["top_logprobs"] = std::move(tops);
  out["text_offset"] = std::move(offsets);
  return out;
}

}  // namespace conclave::http
