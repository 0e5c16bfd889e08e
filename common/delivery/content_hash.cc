// SPDX-License-Identifier: Apache-2.0
#include "common/delivery/content_hash.h"

#include <openssl/evp.h>

#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/delivery/slice_bytes.h"

namespace conclave::delivery {
namespace {

std::string Describe(const WeightLayout& w) {
  return absl::StrCat(std::string(Name(w.dtype)),
                      " ",
                      w.rows,
                      "x",
                      w.cols,
                      " bits ",
                      w.bits,
                      " group ",
                      w.group,
                      " scales ",
                      std::string(Name(w.scale_dtype)),
                      w.biases ? " biases\n" : "\n");
}

}  // namespace

struct SliceHasher::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(context); }
};

SliceHasher::SliceHasher(const checkpoint::SliceLayout& layout)
    : impl_(std::make_unique<Impl>()) {
  CONCLAVE_CHECK(impl_->context != nullptr);
  CONCLAVE_CHECK(EVP_DigestInit_ex(impl_->context, EVP_sha256(), nullptr) == 1);
  const std::string text = absl::StrCat("conclave slice 1\n",
                                        Describe(layout.gate),
                                        Describe(layout.up),
                                        Describe(layout.down));
  Add(std::as_bytes(std::span(text)));
}

SliceHasher::~SliceHasher() = default;

void SliceHasher::Add(std::span<const std::byte> bytes) {
  CONCLAVE_CHECK(EVP_DigestUpdate(impl_->context, bytes.data(), bytes.size()) ==
                 1);
}

ContentHash SliceHasher::Finish() {
  ContentHash out;
  CONCLAVE_CHECK(EVP_DigestFinal_ex(impl_->context, out.data(), nullptr) == 1);
  return out;
}

ContentHash HashOf(const checkpoint::SliceLayout& layout,
                   const checkpoint::SliceSpans& slice) {
  SliceHasher hasher(layout);
  for (const std::span<std::byte> part : InOrder(slice)) hasher.Add(part);
  return hasher.Finish();
}

std::string Hex(const ContentHash& hash) {
  return absl::BytesToHexString(ToBytes(hash));
}

std::optional<ContentHash> HashFromBytes(std::string_view bytes) {
  ContentHash out;
  if (bytes.size() != out.size()) return std::nullopt;
  std::memcpy(out.data(), bytes.data(), out.size());
  return out;
}

std::string ToBytes(const ContentHash& hash) {
  return std::string(reinterpret_cast<const char*>(hash.data()), hash.size());
}

}  // namespace conclave::delivery
