// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/checkpoint.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/bf16.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/safetensors_index.h"
#include "common/checkpoint/strict_json.h"
#include "common/checkpoint/tensor_list.h"
#include "common/checkpoint/tensor_names.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
// Outside of the index: MLX's readers would take it for a sign of norms that
// are not folded.
constexpr char kMtpFile[] = "mtp/weights.safetensors";
constexpr size_t kFilesMax = 4096;
constexpr size_t kPieceBytes = size_t{1} << 20;

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

}  // namespace

struct Checkpoint::Impl {
  std::string folder;
  std::string list_file;  // what lists the tensors, for error messages
  ModelConfig config;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files;  // by path
  std::map<std::string, TensorView, std::less<>> tensors;  // canonical name
  uint64_t total_tensor_bytes = 0;

  std::string Path(const std::string& name) const {
    return (fs::path(folder) / name).string();
  }

  absl::Status ReadConfig();
  absl::Status OpenFiles();
  absl::Status OpenFile(const std::string& name);
  absl::Status CheckIndex(const WeightMap& index) const;
  absl::StatusOr<Prefix> FindPrefix() const;
  absl::Status NameTensors();
  absl::Status CheckTensors() const;
  absl::Status CheckTensor(const ExpectedTensor& expected,
                           const Prefix& prefix) const;
};

absl::Status Checkpoint::Impl::ReadConfig() {
  const std::string path = Path("config.json");
  ASSIGN_OR_RETURN(const std::string text,
                   ReadSmallFile(path, limits::kConfigFileBytesMax));
  ASSIGN_OR_RETURN(config, ParseModelConfig(text, path));
  const std::string generation = Path("generation_config.json");
  if (!Exists(generation)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string generation_text,
                   ReadSmallFile(generation, limits::kConfigFileBytesMax));
  ASSIGN_OR_RETURN(
      std::vector<int32_t> ids,
      ParseEosTokenIds(generation_text, generation, config.vocab_size));
  if (!ids.empty()) config.eos_token_ids = std::move(ids);
  return absl::OkStatus();
}

absl::Status Checkpoint::Impl::OpenFile(const std::string& name) {
  const std::string path = Path(name);
  if (files.contains(path)) return absl::OkStatus();
  if (files.size() == kFilesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(list_file, ": names more than ", kFilesMax, " files"));
  }
  ASSIGN_OR_RETURN(files[path], SafetensorsFile::Open(path));
  return absl::OkStatus();
}

absl::Status Checkpoint::Impl::OpenFiles() {
  const bool single = Exists(Path(kSingleFile));
  if (!Exists(Path(kIndexFile))) {
    if (!single) {
      return absl::NotFoundError(absl::StrCat(
          folder, ": has neither ", kSingleFile, " nor ", kIndexFile));
    }
    list_file = Path(kSingleFile);
    return OpenFile(kSingleFile);
  }
  list_file = Path(kIndexFile);
  ASSIGN_OR_RETURN(const WeightMap index, ReadSafetensorsIndex(list_file));
  for (const auto& [tensor, file] : index) {
    const absl::Status opened = OpenFile(file);
    if (absl::IsNotFound(opened)) {
      return absl::InvalidArgumentError(absl::StrCat(
          list_file, ": names ", Quoted(file), ", which cannot be opened"));
    }
    RETURN_IF_ERROR(opened);
  }
  if (single && !files.contains(Path(kSingleFile))) {
    return absl::InvalidArgumentError(
        absl::StrCat(list_file,
                     ": does not name ",
                     kSingleFile,
                     ", which stands in the same folder; remove one of them"));
  }
  return CheckIndex(index);
}

absl::Status Checkpoint::Impl::CheckIndex(const WeightMap& index) const {
  for (const auto& [tensor, name] : index) {
    const std::string path = Path(name);
    if (!files.at(path)->Find(tensor).ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(list_file,
                       ": says that tensor ",
                       Quoted(tensor),
                       " is in ",
                       Quoted(name),
                       ", but that file does not have it"));
    }
  }
  for (const auto& [path, file] : files) {
    for (const TensorView& tensor : file->tensors()) {
      const auto at = index.find(tensor.name);
      if (at == index.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(path,
                         ": tensor ",
                         Quoted(tensor.name),
                         " does not stand in the index ",
                         list_file));
      }
      if (Path(at->second) != path) {
        return absl::InvalidArgumentError(absl::StrCat(path,
                                                       ": tensor ",
                                                       Quoted(tensor.name),
                                                       " stands in ",
                                                       Quoted(at->second),
                                                       " too"));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Prefix> Checkpoint::Impl::FindPrefix() const {
  for (const Prefix& prefix : Prefixes()) {
    const std::string name =
        absl::StrCat(std::string(prefix.model), "norm.weight");
    for (const auto& [path, file] : files) {
      if (file->Find(name).ok()) return prefix;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(list_file,
                   ": no tensor \"norm.weight\" after any of the prefixes "
                   "model.language_model., language_model.model. and model.; "
                   "is it a qwen3_5_moe checkpoint?"));
}

absl::Status Checkpoint::Impl::NameTensors() {
  ASSIGN_OR_RETURN(const Prefix prefix, FindPrefix());
  for (const auto& [path, file] : files) {
    for (const TensorView& tensor : file->tensors()) {
      total_tensor_bytes += tensor.data.size();
      if (IsVision(tensor.name)) continue;
      const std::string name = Canonical(tensor.name, prefix);
      if (name.empty() || !tensors.emplace(name, tensor).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(path,
                         ": tensor ",
                         Quoted(tensor.name),
                         name.empty() ? " does not belong to a qwen3_5_moe"
                                      : " stands there twice"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Impl::CheckTensor(const ExpectedTensor& expected,
                                           const Prefix& prefix) const {
  const auto at = tensors.find(expected.name);
  if (at == tensors.end()) {
    const std::string full = absl::StrCat(
        std::string(IsTop(expected.name) ? prefix.top : prefix.model),
        expected.name);
    return absl::InvalidArgumentError(
        absl::StrCat(list_file,
                     ": tensor ",
                     Quoted(full),
                     " with shape [",
                     absl::StrJoin(expected.shape, ", "),
                     "] is missing"));
  }
  const TensorView& tensor = at->second;
  const auto bad = [&](const std::string& but) {
    return absl::InvalidArgumentError(absl::StrCat(tensor.file,
                                                   ": tensor ",
                                                   Quoted(tensor.name),
                                                   ": is ",
                                                   ShapeText(tensor),
                                                   ", but ",
                                                   but));
  };
  const std::string wanted = WantedDType(expected.kind, tensor.dtype);
  if (!wanted.empty()) return bad(wanted);
  if (tensor.shape == expected.shape) return absl::OkStatus();
  return bad(absl::StrCat("config.json asks for shape [",
                          absl::StrJoin(expected.shape, ", "),
                          "]"));
}

absl::Status Checkpoint::Impl::CheckTensors() const {
  ASSIGN_OR_RETURN(const Prefix prefix, FindPrefix());
  bool with_mtp = false;
  if (config.mtp_num_hidden_layers > 0) {
    for (const auto& [name, tensor] : tensors) {
      with_mtp = with_mtp || name.starts_with("mtp.");
    }
  }
  std::set<std::string> known;
  RETURN_IF_ERROR(ForEachExpectedTensor(
      config,
      with_mtp,
      [&](std::string_view name) { return tensors.contains(name); },
      [&](const ExpectedTensor& expected) {
        known.insert(expected.name);
        return CheckTensor(expected, prefix);
      }));
  for (const auto& [name, tensor] : tensors) {
    if (known.contains(name)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(tensor.file,
                     ": tensor ",
                     Quoted(tensor.name),
                     " has no place in the model that config.json describes"));
  }
  return absl::OkStatus();
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::~Checkpoint() = default;

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& folder) {
  static_assert(std::endian::native == std::endian::little);
  auto impl = std::make_unique<Impl>();
  impl->folder = folder;
  RETURN_IF_ERROR(impl->ReadConfig());
  RETURN_IF_ERROR(impl->OpenFiles());
  if (Exists(impl->Path(kMtpFile))) {
    RETURN_IF_ERROR(impl->OpenFile(kMtpFile));
  }
  RETURN_IF_ERROR(impl->NameTensors());
  RETURN_IF_ERROR(impl->CheckTensors());
  return std::unique_ptr<Checkpoint>(new Checkpoint(std::move(impl)));
}

const ModelConfig& Checkpoint::config() const { return impl_->config; }
const std::string& Checkpoint::folder() const { return impl_->folder; }
uint64_t Checkpoint::total_tensor_bytes() const {
  return impl_->total_tensor_bytes;
}

bool Checkpoint::folded_norms() const {
  return IsMlx([&](std::string_view name) { return Has(name); });
}

bool Checkpoint::Has(std::string_view name) const {
  return impl_->tensors.contains(name);
}

absl::StatusOr<TensorView> Checkpoint::Find(std::string_view name) const {
  const auto at = impl_->tensors.find(name);
  if (at == impl_->tensors.end()) {
    return absl::NotFoundError(
        absl::StrCat(impl_->folder, ": has no tensor ", Quoted(name)));
  }
  return at->second;
}

absl::StatusOr<std::vector<float>> Checkpoint::ReadFloats(
    std::string_view name) const {
  ASSIGN_OR_RETURN(const TensorView tensor, Find(name));
  std::vector<float> out(tensor.data.size() / SizeOf(tensor.dtype));
  if (tensor.dtype == DType::kF32) {
    RETURN_IF_ERROR(
        ReadBytes(tensor, 0, std::as_writable_bytes(std::span(out))));
    return out;
  }
  std::vector<uint16_t> piece(std::min(out.size(), kPieceBytes / 2));
  for (size_t at = 0; at < out.size(); at += piece.size()) {
    const size_t count = std::min(piece.size(), out.size() - at);
    RETURN_IF_ERROR(
        ReadBytes(tensor,
                  at * sizeof(uint16_t),
                  std::as_writable_bytes(std::span(piece).first(count))));
    std::transform(
        piece.begin(), piece.begin() + count, out.begin() + at, FromBf16);
  }
  return out;
}

absl::Status Checkpoint::ReadBytes(const TensorView& tensor,
                                   uint64_t offset,
                                   std::span<std::byte> out) const {
  const auto file = impl_->files.find(tensor.file);
  if (file == impl_->files.end() || offset > tensor.data.size() ||
      out.size() > tensor.data.size() - offset) {
    return absl::OutOfRangeError(absl::StrCat(tensor.file,
                                              ": tensor ",
                                              Quoted(tensor.name),
                                              ": bytes [",
                                              offset,
                                              ", +",
                                              out.size(),
                                              ") are not part of it"));
  }
  return file->second->Read(tensor.file_offset + offset, out);
}

}  // namespace conclave::checkpoint
