// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "common/checkpoint/checkpoint.h"
#include "common/delivery/content_hash.h"
#include "common/slices.h"

namespace conclave::delivery {

// The hashes of a checkpoint's slices, as far as they were computed. Kept in a
// file, so that after a restart workers find their slices in their caches
// without one byte of the checkpoint being read. Thread-safe.
class Manifest {
 public:
  // `folder`: where the file is kept; empty: nowhere. A file that is damaged
  // or belongs to another state of the checkpoint is not used.
  Manifest(const checkpoint::Checkpoint& checkpoint, const std::string& folder);

  // 32 bytes; another value where the checkpoint's path or any of its files'
  // names, sizes, inodes or times differ.
  const std::string& source() const { return source_; }

  std::optional<ContentHash> Find(const Slice& slice) const;
  void Put(const Slice& slice, const ContentHash& hash);

  // Writes the file if anything was added since. A failure is logged: it costs
  // time at the next start, nothing else.
  void Save();

 private:
  void Read();

  const std::string source_;
  const std::string path_;  // empty: none
  mutable std::mutex mu_;
  std::map<Slice, ContentHash> hashes_;
  bool changed_ = false;
};

}  // namespace conclave::delivery
