// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/strict_json.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kRankMax = 8;
// Reads of so much tell the system where they will end.
constexpr size_t kAheadBytes = size_t{128} << 10;

absl::Status Bad(const std::string& file, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", why));
}

absl::Status BadTensor(const TensorView& tensor, const std::string& why) {
  return Bad(tensor.file,
             absl::StrCat("tensor ", Quoted(tensor.name), ": ", why));
}

std::optional<int64_t> AsCount(const json::value& value) {
  if (const int64_t* number = value.if_int64(); number && *number >= 0) {
    return *number;
  }
  return std::nullopt;
}

absl::Status ReadShape(const json::value& value, TensorView& tensor) {
  const json::array* shape = value.if_array();
  if (!shape || shape->size() > kRankMax) {
    return BadTensor(
        tensor,
        absl::StrCat("shape must be a list of at most ", kRankMax, " sizes"));
  }
  for (const json::value& size : *shape) {
    const std::optional<int64_t> count = AsCount(size);
    if (!count) {
      return BadTensor(tensor, "shape has a size that is no whole number >= 0");
    }
    tensor.shape.push_back(*count);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ByteSize(const TensorView& tensor) {
  uint64_t bytes = SizeOf(tensor.dtype);
  bool overflow = false;
  for (int64_t size : tensor.shape) {
    overflow |=
        __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes);
  }
  if (overflow || bytes > static_cast<uint64_t>(INT64_MAX)) {
    return BadTensor(tensor,
                     absl::StrCat("shape [",
                                  absl::StrJoin(tensor.shape, ", "),
                                  "] overflows 64 bits"));
  }
  return bytes;
}

// `data_begin`: where the data starts in the file.
absl::Status ReadOffsets(const json::value& value,
                         std::span<const std::byte> file,
                         uint64_t data_begin,
                         TensorView& tensor) {
  const json::array* pair = value.if_array();
  if (!pair || pair->size() != 2 || !AsCount((*pair)[0]) ||
      !AsCount((*pair)[1])) {
    return BadTensor(tensor, "data_offsets must be two whole numbers >= 0");
  }
  const uint64_t begin = *AsCount((*pair)[0]);
  const uint64_t end = *AsCount((*pair)[1]);
  const uint64_t available = file.size() - data_begin;
  const std::string range =
      absl::StrCat("data_offsets [", begin, ", ", end, ")");
  if (begin > end) return BadTensor(tensor, absl::StrCat(range, " run back"));
  if (end > available) {
    return BadTensor(tensor,
                     absl::StrCat(range,
                                  " leave the file, which has ",
                                  available,
                                  " bytes of data; was it copied whole?"));
  }
  ASSIGN_OR_RETURN(const uint64_t bytes, ByteSize(tensor));
  if (end - begin != bytes) {
    return BadTensor(tensor,
                     absl::StrCat(range,
                                  " hold ",
                                  end - begin,
                                  " bytes, but ",
                                  std::string(Name(tensor.dtype)),
                                  " [",
                                  absl::StrJoin(tensor.shape, ", "),
                                  "] needs ",
                                  bytes));
  }
  tensor.file_offset = data_begin + begin;
  if (tensor.file_offset % SizeOf(tensor.dtype) != 0) {
    return BadTensor(tensor,
                     "data is not aligned to its element size; write the file "
                     "again with a current safetensors");
  }
  tensor.data = file.subspan(tensor.file_offset, bytes);
  return absl::OkStatus();
}

absl::Status ReadEntry(const json::value& value,
                       std::span<const std::byte> file,
                       uint64_t data_begin,
                       TensorView& tensor) {
  const json::object* entry = value.if_object();
  if (!entry) return BadTensor(tensor, "entry must be a JSON object");
  for (const auto& [key, unused] : *entry) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return BadTensor(tensor, absl::StrCat("unknown field ", Quoted(key)));
    }
  }
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!entry->contains(key)) {
      return BadTensor(tensor, absl::StrCat(key, " is missing"));
    }
  }
  const json::string* dtype = entry->at("dtype").if_string();
  if (!dtype) return BadTensor(tensor, "dtype must be a string");
  const auto known = DTypeFromName(std::string_view(*dtype));
  if (!known.ok()) {
    return BadTensor(tensor, absl::StrCat("unknown dtype ", Quoted(*dtype)));
  }
  tensor.dtype = *known;
  RETURN_IF_ERROR(ReadShape(entry->at("shape"), tensor));
  return ReadOffsets(entry->at("data_offsets"), file, data_begin, tensor);
}

absl::Status CheckMetadata(const json::value& value, const std::string& file) {
  const json::object* metadata = value.if_object();
  if (!metadata) return Bad(file, "__metadata__ must be a JSON object");
  for (const auto& [key, text] : *metadata) {
    if (!text.is_string()) {
      return Bad(file,
                 absl::StrCat("__metadata__: ", Quoted(key), " is no string"));
    }
  }
  return absl::OkStatus();
}

// The data must be covered exactly: an overlap or a hole means that header and
// data do not belong together.
absl::Status CheckCover(const std::vector<TensorView>& tensors,
                        uint64_t data_begin,
                        uint64_t file_size,
                        const std::string& file) {
  std::vector<const TensorView*> order;
  for (const TensorView& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->file_offset, a->data.size()) <
           std::pair(b->file_offset, b->data.size());
  });
  uint64_t end = data_begin;
  const TensorView* before = nullptr;
  for (const TensorView* tensor : order) {
    if (tensor->file_offset < end) {
      return BadTensor(
          *tensor,
          absl::StrCat("data overlaps that of ", Quoted(before->name)));
    }
    if (tensor->file_offset > end) {
      return BadTensor(*tensor,
                       absl::StrCat(tensor->file_offset - end,
                                    " bytes before its data belong to no "
                                    "tensor"));
    }
    end += tensor->data.size();
    before = tensor;
  }
  if (end != file_size) {
    return Bad(file,
               absl::StrCat(
                   "the last ", file_size - end, " bytes belong to no tensor"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> HeaderLength(std::span<const std::byte> file,
                                      const std::string& name) {
  if (file.size() < kLengthBytes) {
    return Bad(
        name,
        absl::StrCat(
            "has ", file.size(), " bytes, too short for a safetensors file"));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  }
  if (length > limits::kSafetensorsHeaderBytesMax) {
    return Bad(name,
               absl::StrCat("header length ",
                            length,
                            " is above the limit of ",
                            limits::kSafetensorsHeaderBytesMax,
                            " bytes; is it a safetensors file?"));
  }
  if (length > file.size() - kLengthBytes) {
    return Bad(name,
               absl::StrCat("header length ",
                            length,
                            " leaves the file of ",
                            file.size(),
                            " bytes; was it copied whole?"));
  }
  return length;
}

}  // namespace

absl::StatusOr<std::vector<TensorView>> ParseSafetensors(
    std::span<const std::byte> file, const std::string& file_name) {
  ASSIGN_OR_RETURN(const uint64_t length, HeaderLength(file, file_name));
  const uint64_t data_begin = kLengthBytes + length;
  const std::string_view text(
      reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  ASSIGN_OR_RETURN(const json::value header,
                   ParseStrictJson(text, file_name + ": header"));
  const json::object* entries = header.if_object();
  if (!entries) return Bad(file_name, "header must be a JSON object");
  std::vector<TensorView> tensors;
  for (const auto& [key, value] : *entries) {
    if (key == "__metadata__") {
      RETURN_IF_ERROR(CheckMetadata(value, file_name));
      continue;
    }
    TensorView tensor;
    tensor.name = std::string(key);
    tensor.file = file_name;
    RETURN_IF_ERROR(ReadEntry(value, file, data_begin, tensor));
    tensors.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(CheckCover(tensors, data_begin, file.size(), file_name));
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return a.name < b.name;
  });
  return tensors;
}

struct SafetensorsFile::Impl {
  std::string path;
  int fd = -1;
  void* map = MAP_FAILED;
  size_t size = 0;
  std::vector<TensorView> tensors;

  ~Impl() {
    if (map != MAP_FAILED) munmap(map, size);
    if (fd >= 0) close(fd);
  }
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
SafetensorsFile::~SafetensorsFile() = default;

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  // O_NONBLOCK: a pipe must not make us wait; files do not care.
  impl->fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (impl->fd < 0) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot open: ", std::strerror(errno)));
  }
  struct stat info = {};
  if (fstat(impl->fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    return Bad(path, "is not a regular file");
  }
  impl->size = static_cast<size_t>(info.st_size);
  std::span<const std::byte> bytes;
  if (impl->size > 0) {
    impl->map = mmap(
        nullptr, impl->size, PROT_READ, MAP_PRIVATE, impl->fd, /*offset=*/0);
    if (impl->map == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat(path, ": cannot map: ", std::strerror(errno)));
    }
    bytes = {static_cast<const std::byte*>(impl->map), impl->size};
  }
  ASSIGN_OR_RETURN(impl->tensors, ParseSafetensors(bytes, path));
  return std::unique_ptr<SafetensorsFile>(new SafetensorsFile(std::move(impl)));
}

const std::vector<TensorView>& SafetensorsFile::tensors() const {
  return impl_->tensors;
}

const std::string& SafetensorsFile::path() const { return impl_->path; }

absl::StatusOr<TensorView> SafetensorsFile::Find(std::string_view name) const {
  const auto& all = impl_->tensors;
  const auto at = std::lower_bound(
      all.begin(),
      all.end(),
      name,
      [](const TensorView& t, std::string_view n) { return t.name < n; });
  if (at == all.end() || at->name != name) {
    return absl::NotFoundError(
        absl::StrCat(impl_->path, ": has no tensor ", Quoted(name)));
  }
  return *at;
}

absl::Status SafetensorsFile::Read(uint64_t offset,
                                   std::span<std::byte> out) const {
  // All of it at once: several readers would spoil the guess of what comes
  // next, which the system makes for the file as a whole.
  if (out.size() >= kAheadBytes) {
    posix_fadvise(impl_->fd,
                  static_cast<off_t>(offset),
                  static_cast<off_t>(out.size()),
                  POSIX_FADV_WILLNEED);
  }
  while (!out.empty()) {
    const ssize_t got =
        pread(impl_->fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::DataLossError(absl::StrCat(
          impl_->path,
          ": cannot read at byte ",
          offset,
          ": ",
          got == 0 ? "the file became shorter" : std::strerror(errno)));
    }
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

}  // namespace conclave::checkpoint
