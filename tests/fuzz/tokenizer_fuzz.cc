// SPDX-License-Identifier: Apache-2.0
// Any bytes as text: refused at the first byte that is no UTF-8, or encoded to
// ids that decode to the text's normal form.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave::text;  // NOLINT: a fuzzer's main
  static const auto* const kLoaded =
      new auto(Tokenizer::Load("deploy/models/qwen3.5-moe-tiny"));
  if (!kLoaded->ok()) std::abort();
  const Tokenizer& tokenizer = ***kLoaded;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto ids = tokenizer.Encode(text);
  const bool valid = FindInvalidUtf8(text) == std::string_view::npos;
  if (ids.ok() != valid) std::abort();
  if (!valid) return 0;
  // Added tokens part the text before it is normalised: put it together alike.
  std::string expected;
  std::string decoded;
  std::string_view rest = text;
  for (const int32_t id : *ids) {
    const std::string bytes(tokenizer.Bytes(id));
    if (bytes.empty()) std::abort();
    decoded += bytes;
    if (tokenizer.AddedToken(bytes) != id) continue;
    const size_t at = rest.find(bytes);
    if (at == std::string_view::npos) std::abort();
    expected += ToNfc(rest.substr(0, at)).value() + bytes;
    rest.remove_prefix(at + bytes.size());
  }
  expected += ToNfc(rest).value();
  if (decoded != expected) std::abort();
  if (tokenizer.Decode(*ids, false) != expected) std::abort();
  return 0;
}
