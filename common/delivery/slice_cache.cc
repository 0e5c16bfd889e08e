// SPDX-License-Identifier: Apache-2.0
#include "common/delivery/slice_cache.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/delivery/slice_bytes.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace conclave::delivery {
namespace {

namespace fs = std::filesystem;

// Hashed while it is still in the processor's cache.
constexpr uint64_t kChunkBytes = uint64_t{256} << 10;
constexpr char kUnfinished[] = "unfinished";

class File {
 public:
  File(const std::string& path, int flags)
      : path_(path), fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  absl::Status Error(const char* what) const {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cache: ", what, " ", path_));
  }
  uint64_t size() const {
    struct stat info = {};
    return fstat(fd_, &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
  }

  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      const ssize_t n =
          pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Error("cannot read");
      if (n == 0) return absl::DataLossError("cache: " + path_ + " is cut off");
      out = out.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  }

  absl::Status WriteAll(std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Error("cannot write");
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int fd_;
};

// What programs that are gone left behind.
void RemoveUnfinished(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    int pid = 0;
    const bool ours = absl::SimpleAtoi(name.substr(0, name.find('.')), &pid);
    if (ours && kill(pid, 0) != 0 && errno == ESRCH) {
      std::error_code ignored;
      fs::remove(entry.path(), ignored);
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<SliceCache>> SliceCache::Open(
    const std::string& folder, uint64_t bytes_max) {
  std::error_code error;
  const fs::path unfinished = fs::path(folder) / kUnfinished;
  fs::create_directories(unfinished, error);
  if (error || access(unfinished.c_str(), W_OK | X_OK) != 0) {
    const int why = error ? error.value() : errno;
    return absl::ErrnoToStatus(
        why,
        absl::StrCat("cache: cannot write to ",
                     folder,
                     "; choose another folder or \"off\""));
  }
  RemoveUnfinished(unfinished);
  return std::unique_ptr<SliceCache>(new SliceCache(folder, bytes_max));
}

std::string SliceCache::PathOf(const ContentHash& hash) const {
  const std::string hex = Hex(hash);
  return absl::StrCat(folder_, "/", hex.substr(0, 2), "/", hex);
}

bool SliceCache::IsEmpty() const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    if (entry.path().filename() != kUnfinished) return false;
  }
  return true;
}

bool SliceCache::Holds(const ContentHash& hash) const {
  return access(PathOf(hash).c_str(), R_OK) == 0;
}

absl::Status SliceCache::Read(const ContentHash& hash,
                              const checkpoint::SliceLayout& layout,
                              const checkpoint::SliceSpans& out) const {
  const std::string path = PathOf(hash);
  const File file(path, O_RDONLY);
  if (!file.is_open()) return file.Error("no");
  const auto broken = [&] {
    unlink(path.c_str());
    return absl::DataLossError(absl::StrCat(
        "cache: ", path, " is damaged; removed, it will be fetched again"));
  };
  if (file.size() != layout.bytes()) return broken();
  SliceHasher hasher(layout);
  uint64_t offset = 0;
  for (std::span<std::byte> part : InOrder(out)) {
    while (!part.empty()) {
      const auto chunk =
          part.first(std::min<uint64_t>(kChunkBytes, part.size()));
      RETURN_IF_ERROR(file.ReadAt(offset, chunk));
      hasher.Add(chunk);
      offset += chunk.size();
      part = part.subspan(chunk.size());
    }
  }
  if (hasher.Finish() != hash) return broken();
  futimens(file.fd(), nullptr);  // used: Trim takes others first
  return absl::OkStatus();
}

absl::StatusOr<Buffer> SliceCache::ReadRange(const ContentHash& hash,
                                             uint64_t offset,
                                             uint64_t length) const {
  const File file(PathOf(hash), O_RDONLY);
  if (!file.is_open()) return file.Error("no");
  const uint64_t size = file.size();
  if (offset > size || length > size - offset) {
    return absl::OutOfRangeError(
        absl::StrCat("cache: bytes ", offset, " + ", length, " of ", size));
  }
  Buffer out(length);
  RETURN_IF_ERROR(file.ReadAt(offset, out.bytes()));
  return out;
}

absl::Status SliceCache::Write(const ContentHash& hash,
                               const checkpoint::SliceSpans& slice) {
  const std::string path = PathOf(hash);
  if (Holds(hash)) return absl::OkStatus();
  const std::string draft = absl::StrCat(
      folder_, "/", kUnfinished, "/", getpid(), ".", writes_.fetch_add(1));
  const auto put = [&]() -> absl::Status {
    const File file(draft, O_WRONLY | O_CREAT | O_TRUNC);
    if (!file.is_open()) return file.Error("cannot make");
    for (const std::span<std::byte> part : InOrder(slice)) {
      RETURN_IF_ERROR(file.WriteAll(part));
    }
    return absl::OkStatus();
  };
  absl::Status status = put();
  if (status.ok()) {
    std::error_code error;
    fs::create_directory(fs::path(path).parent_path(), error);
    if (rename(draft.c_str(), path.c_str()) == 0) return absl::OkStatus();
    status = absl::ErrnoToStatus(errno, "cache: cannot make " + path);
  }
  unlink(draft.c_str());
  return status;
}

void SliceCache::Trim(
    const std::function<bool(const ContentHash& hash)>& keep) {
  if (bytes_max_ == 0) return;
  struct Entry {
    fs::file_time_type used;
    uint64_t bytes;
    fs::path path;
  };
  std::vector<Entry> spare;
  uint64_t total = 0;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(folder_, error)) {
    const auto hash =
        HashFromBytes(absl::HexStringToBytes(entry.path().filename().string()));
    if (!entry.is_regular_file(error) || !hash.has_value()) continue;
    const uint64_t bytes = entry.file_size(error);
    total += bytes;
    if (keep(*hash)) continue;
    spare.push_back({entry.last_write_time(error), bytes, entry.path()});
  }
  std::sort(spare.begin(), spare.end(), [](const Entry& a, const Entry& b) {
    return a.used < b.used;
  });
  for (const Entry& entry : spare) {
    if (total <= bytes_max_) return;
    if (fs::remove(entry.path, error)) total -= entry.bytes;
  }
  if (total > bytes_max_) {
    log::Warning(absl::StrCat("cache: ",
                              folder_,
                              " holds ",
                              total,
                              " bytes that are in use, the limit is ",
                              bytes_max_));
  }
}

std::string CacheFolder(const std::string& word) {
  if (word == "off") return "";
  if (!word.empty()) return word;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg && *xdg) {
    return absl::StrCat(xdg, "/conclave");
  }
  const char* home = std::getenv("HOME");
  return home && *home ? absl::StrCat(home, "/.cache/conclave") : "";
}

}  // namespace conclave::delivery
