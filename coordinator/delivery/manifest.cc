// SPDX-License-Identifier: Apache-2.0
#include "coordinator/delivery/manifest.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string_view>
#include <tuple>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/sha256.h"
#include "common/log.h"

namespace conclave::delivery {
namespace {

namespace fs = std::filesystem;

using checkpoint::Sha256;

constexpr std::string_view kMagic = "conclave manifest 1\n";

constexpr size_t kDigestBytes = std::tuple_size_v<ContentHash>;

struct Record {
  std::array<int32_t, 4> slice;  // layer, expert, begin, end
  ContentHash hash;
};
static_assert(sizeof(Record) == 48);

std::string SourceOf(const checkpoint::Checkpoint& checkpoint) {
  std::error_code error;
  const fs::path folder = fs::absolute(checkpoint.folder(), error);
  std::set<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    struct stat info = {};
    if (stat(entry.path().c_str(), &info) != 0) continue;
    files.insert(absl::StrCat(entry.path().filename().string(),
                              " ",
                              info.st_size,
                              " ",
                              info.st_ino,
                              " ",
                              info.st_mtim.tv_sec,
                              ".",
                              info.st_mtim.tv_nsec,
                              "\n"));
  }
  std::string text = absl::StrCat(
      folder.string(), "\n", checkpoint.config().config_sha256, "\n");
  for (const std::string& file : files) text += file;
  return Sha256(text);
}

std::string PathOf(const std::string& folder, const std::string& source) {
  if (folder.empty()) return "";
  return absl::StrCat(folder, "/manifests/", absl::BytesToHexString(source));
}

}  // namespace

Manifest::Manifest(const checkpoint::Checkpoint& checkpoint,
                   const std::string& folder)
    : source_(SourceOf(checkpoint)), path_(PathOf(folder, source_)) {
  if (!path_.empty()) Read();
}

std::optional<ContentHash> Manifest::Find(const Slice& slice) const {
  const std::lock_guard<std::mutex> lock(mu_);
  const auto it = hashes_.find(slice);
  if (it == hashes_.end()) return std::nullopt;
  return it->second;
}

void Manifest::Put(const Slice& slice, const ContentHash& hash) {
  const std::lock_guard<std::mutex> lock(mu_);
  const auto [it, added] = hashes_.insert({slice, hash});
  changed_ = changed_ || added || it->second != hash;
  it->second = hash;
}

void Manifest::Read() {
  std::ifstream in(path_, std::ios::binary);
  if (!in) return;
  const std::string text(std::istreambuf_iterator<char>(in), {});
  const size_t overhead = kMagic.size() + kDigestBytes;
  const std::string_view all = text;
  if (all.size() < overhead || !all.starts_with(kMagic) ||
      (all.size() - overhead) % sizeof(Record) != 0 ||
      Sha256(all.substr(0, all.size() - kDigestBytes)) !=
          all.substr(all.size() - kDigestBytes)) {
    log::Warning(absl::StrCat(
        "manifest: ", path_, " is damaged; hashes are computed again"));
    return;
  }
  const size_t count = (all.size() - overhead) / sizeof(Record);
  for (size_t i = 0; i < count; ++i) {
    Record record;
    std::memcpy(&record,
                all.data() + kMagic.size() + i * sizeof(Record),
                sizeof(Record));
    hashes_[{LayerId{record.slice[0]},
             ExpertId{record.slice[1]},
             record.slice[2],
             record.slice[3]}] = record.hash;
  }
}

void Manifest::Save() {
  const std::lock_guard<std::mutex> lock(mu_);
  if (path_.empty() || !changed_) return;
  std::string text(kMagic);
  for (const auto& [slice, hash] : hashes_) {
    const Record record{
        {Index(slice.layer), Index(slice.expert), slice.begin, slice.end},
        hash};
    text.append(reinterpret_cast<const char*>(&record), sizeof(record));
  }
  text += Sha256(text);
  std::error_code error;
  fs::create_directories(fs::path(path_).parent_path(), error);
  const std::string draft = absl::StrCat(path_, ".", getpid());
  std::ofstream out(draft, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (out) fs::rename(draft, path_, error);
  if (!out || error) {
    log::Warning(absl::StrCat("manifest: cannot write ", path_));
    fs::remove(draft, error);
    return;
  }
  changed_ = false;
}

}  // namespace conclave::delivery
