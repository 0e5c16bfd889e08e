// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/checkpoint/slice_part.h"
#include "common/delivery/content_hash.h"

namespace conclave::delivery {

// Slices on disk, each in a file named by its hash. Whatever lies there is
// checked against the name before it is used, so a crash, a full disk or a
// second program on the same folder cannot do harm. Thread-safe.
class SliceCache {
 public:
  // Makes the folder. `bytes_max`: what Trim leaves; 0: all. Errors name the
  // folder.
  static absl::StatusOr<std::unique_ptr<SliceCache>> Open(
      const std::string& folder, uint64_t bytes_max);

  const std::string& folder() const { return folder_; }
  bool IsEmpty() const;
  bool Holds(const ContentHash& hash) const;

  // Fills `out`. NotFound; DataLoss where the file is not that content, which
  // removes it; both leave `out` in any state.
  absl::Status Read(const ContentHash& hash,
                    const checkpoint::SliceLayout& layout,
                    const checkpoint::SliceSpans& out) const;
  // Bytes of a file as they lie there, for another machine that checks them.
  absl::StatusOr<Buffer> ReadRange(const ContentHash& hash,
                                   uint64_t offset,
                                   uint64_t length) const;

  // ResourceExhausted: the disk is full. The file appears whole or not at all.
  absl::Status Write(const ContentHash& hash,
                     const checkpoint::SliceSpans& slice);

  // Removes what was longest unused until bytes_max is met, but nothing that
  // `keep` wants.
  void Trim(const std::function<bool(const ContentHash& hash)>& keep);

 private:
  SliceCache(std::string folder, uint64_t bytes_max)
      : folder_(std::move(folder)), bytes_max_(bytes_max) {}
  std::string PathOf(const ContentHash& hash) const;

  const std::string folder_;
  const uint64_t bytes_max_;
  std::atomic<uint64_t> writes_{0};
};

// What the configuration's word for a cache means: "off" is none (empty), a
// path is that; nothing is $XDG_CACHE_HOME/conclave or ~/.cache/conclave, none
// where neither is set.
std::string CacheFolder(const std::string& word);

}  // namespace conclave::delivery
