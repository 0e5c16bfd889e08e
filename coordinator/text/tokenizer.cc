// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer_file.h"
#include "coordinator/text/unicode.h"

namespace conclave::text {

struct Tokenizer::Impl {
  absl::Status AddVocabulary(const TokenizerFile& file);
  Bpe bpe;
  std::vector<std::string> bytes;  // [ids]
  std::vector<bool> special;       // [ids]
  absl::flat_hash_map<std::string, int32_t> added;
  // Added tokens by first byte, longest first.
  std::array<std::vector<int32_t>, 256> starts;

  // The added token that `text` begins with, or -1.
  int32_t AddedAt(std::string_view text) const {
    for (const int32_t id : starts[static_cast<uint8_t>(text[0])]) {
      if (text.starts_with(bytes[id])) return id;
    }
    return -1;
  }

  absl::Status EncodePlain(std::string_view text,
                           std::vector<int32_t>& out) const {
    if (text.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::string normal, ToNfc(text));
    for (const std::string_view piece : Pretokenize(normal)) {
      bpe.Encode(piece, out);
    }
    return absl::OkStatus();
  }
};

namespace {

absl::Status Bad(const std::string& file, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", why));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& folder) {
  ASSIGN_OR_RETURN(const TokenizerFile file, ReadTokenizerFile(folder));
  auto impl = std::make_unique<Impl>();
  RETURN_IF_ERROR(impl->AddVocabulary(file));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::Status Tokenizer::Impl::AddVocabulary(const TokenizerFile& file) {
  int32_t size = 0;
  for (const auto& [token, id] : file.vocabulary) size = std::max(size, id + 1);
  for (const AddedTokenEntry& t : file.added) size = std::max(size, t.id + 1);
  bytes.resize(static_cast<size_t>(size));
  special.resize(static_cast<size_t>(size));
  for (const auto& [token, id] : file.vocabulary) bytes[id] = token;
  for (int byte = 0; byte < 256; ++byte) {
    const auto it =
        file.vocabulary.find(std::string(1, static_cast<char>(byte)));
    if (it == file.vocabulary.end()) {
      return Bad(file.path,
                 absl::StrCat("model.vocab has no token for byte ", byte));
    }
    bpe.SetByte(static_cast<uint8_t>(byte), it->second);
  }
  for (const auto& [left, right] : file.merges) {
    const auto l = file.vocabulary.find(left);
    const auto r = file.vocabulary.find(right);
    const auto m = file.vocabulary.find(left + right);
    if (l == file.vocabulary.end() || r == file.vocabulary.end() ||
        m == file.vocabulary.end()) {
      return Bad(file.path,
                 absl::StrCat("model.merges[",
                              bpe.merges(),
                              "] names a token that model.vocab lacks"));
    }
    bpe.AddMerge(l->second, r->second, m->second);
  }
  for (const AddedTokenEntry& token : file.added) {
    bytes[token.id] = token.content;
    special[token.id] = token.special;
    added[token.content] = token.id;
    starts[static_cast<uint8_t>(token.content[0])].push_back(token.id);
  }
  for (auto& ids : starts) {
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      return bytes[a].size() > bytes[b].size();
    });
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    std::string_view text) const {
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid != std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("text is not UTF-8 at byte ", invalid));
  }
  std::vector<int32_t> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const int32_t id = impl_->AddedAt(text.substr(at));
    if (id < 0) {
      ++at;
      continue;
    }
    RETURN_IF_ERROR(impl_->EncodePlain(text.substr(begin, at - begin), out));
    out.push_back(id);
    at += impl_->bytes[id].size();
    begin = at;
  }
  RETURN_IF_ERROR(impl_->EncodePlain(text.substr(begin), out));
  return out;
}

std::string_view Tokenizer::Bytes(int32_t id) const {
  if (id < 0 || id >= size()) return {};
  return impl_->bytes[id];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < size() && impl_->special[id];
}

std::optional<int32_t> Tokenizer::AddedToken(std::string_view content) const {
  const auto it = impl_->added.find(std::string(content));
  if (it == impl_->added.end()) return std::nullopt;
  return it->second;
}

int32_t Tokenizer::size() const {
  return static_cast<int32_t>(impl_->bytes.size());
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids,
                              bool skip_special) const {
  Detokenizer detokenizer;
  std::string out;
  for (const int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    out += detokenizer.Push(Bytes(id));
  }
  return out + detokenizer.Finish();
}

}  // namespace conclave::text
