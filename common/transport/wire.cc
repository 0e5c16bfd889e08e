// SPDX-License-Identifier: Apache-2.0
#include "common/transport/wire.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/transport/wire_header.h"

namespace conclave::transport {
namespace {

constexpr size_t kErrorMessageBytesMax = 4096;
struct ShardHeader {
  int32_t shard;
  int32_t count;  // entries of a request, rows of a reply
};
static_assert(sizeof(ShardHeader) == kAlign);

bool IsWireDType(uint8_t dtype) {
  return dtype == static_cast<uint8_t>(DType::kF32) ||
         dtype == static_cast<uint8_t>(DType::kBF16);
}

// Appends to a buffer that has the right size already.
class Writer {
 public:
  explicit Writer(size_t size) : buffer_(size) {}

  template <typename T>
  void Put(std::span<const T> values) {
    const size_t bytes = values.size_bytes();
    CONCLAVE_CHECK_LE(used_ + Padded(bytes), buffer_.size());
    if (bytes == 0) return;
    std::memcpy(buffer_.data() + used_, values.data(), bytes);
    std::memset(buffer_.data() + used_ + bytes, 0, Padded(bytes) - bytes);
    used_ += Padded(bytes);
  }
  template <typename T>
  void PutOne(const T& value) {
    Put(std::span<const T>(&value, 1));
  }
  Buffer Finish() {
    CONCLAVE_CHECK_EQ(used_, buffer_.size());
    return std::move(buffer_);
  }

 private:
  Buffer buffer_;
  size_t used_ = 0;
};

// Takes pieces from the front; false when the frame is too short.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  bool Take(uint64_t count, std::span<const T>* out) {
    // count is at most 2^31 * kHiddenMax here, so nothing overflows.
    const uint64_t bytes = count * sizeof(T);
    if (Padded(bytes) > bytes_.size()) return false;
    *out = {reinterpret_cast<const T*>(bytes_.data()),
            static_cast<size_t>(count)};
    bytes_ = bytes_.subspan(Padded(bytes));
    return true;
  }
  bool empty() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

// Bounds of the fields that requests and replies share.
absl::Status CheckSizes(const Header& header) {
  if (header.shards < 0 || header.shards > limits::kShardsMax) {
    return Bad(header.shards, " shards are out of bounds");
  }
  if (header.rows < 0 || header.rows > limits::kStepRowsMax) {
    return Bad(header.rows, " rows are out of bounds");
  }
  if (header.hidden < 1 || header.hidden > limits::kHiddenMax) {
    return Bad("hidden ", header.hidden, " is out of bounds");
  }
  if (!IsWireDType(header.dtype) || !IsWireDType(header.reply_dtype)) {
    return Bad("rows are neither F32 nor BF16");
  }
  return absl::OkStatus();
}

// The shard table: ascending ids, counts not negative.
absl::StatusOr<std::span<const ShardHeader>> ReadShards(const Header& header,
                                                        Reader* reader) {
  std::span<const ShardHeader> shards;
  if (!reader->Take(static_cast<uint64_t>(header.shards), &shards)) {
    return Bad("ends within the table of shards");
  }
  int32_t last = -1;
  for (const ShardHeader& shard : shards) {
    if (shard.shard <= last || shard.shard >= limits::kShardsMax) {
      return Bad("shard ", shard.shard, " after ", last);
    }
    if (shard.count < 0) return Bad("negative count of a shard");
    last = shard.shard;
  }
  return shards;
}

absl::Status CheckEntries(const ShardEntries& entries, int32_t row_count) {
  int32_t last_slice = -1, last_row = -1;
  for (size_t i = 0; i < entries.slice.size(); ++i) {
    const int32_t slice = entries.slice[i], row = entries.row[i];
    if (slice < 0 || slice >= limits::kExpertsMax) {
      return Bad("slice ", slice, " is out of bounds");
    }
    if (row < 0 || row >= row_count) {
      return Bad("row ", row, " of ", row_count);
    }
    if (std::pair(slice, row) <= std::pair(last_slice, last_row)) {
      return Bad("entries are not sorted by (slice, row)");
    }
    if (!std::isfinite(entries.weight[i])) return Bad("weight is not finite");
    last_slice = slice;
    last_row = row;
  }
  return absl::OkStatus();
}

}  // namespace

Buffer EncodeRequest(const ExpertRequest& request) {
  size_t bytes = sizeof(Header) + request.shards.size() * sizeof(ShardHeader) +
                 Padded(request.x.size());
  for (const ShardEntries& shard : request.shards) {
    CONCLAVE_CHECK_EQ(shard.slice.size(), shard.row.size());
    CONCLAVE_CHECK_EQ(shard.slice.size(), shard.weight.size());
    bytes += 3 * Padded(shard.slice.size() * sizeof(int32_t));
  }
  CONCLAVE_CHECK_EQ(request.x.size(),
                    static_cast<size_t>(request.row_count) *
                        static_cast<size_t>(request.hidden) *
                        SizeOf(request.dtype));
  Writer writer(bytes);
  Header header = MakeHeader(FrameKind::kRequest, request.tag, bytes);
  header.shards = static_cast<int32_t>(request.shards.size());
  header.rows = request.row_count;
  header.hidden = request.hidden;
  header.dtype = static_cast<uint8_t>(request.dtype);
  header.reply_dtype = static_cast<uint8_t>(request.reply_dtype);
  writer.PutOne(header);
  for (const ShardEntries& shard : request.shards) {
    writer.PutOne(ShardHeader{Index(shard.shard),
                              static_cast<int32_t>(shard.slice.size())});
  }
  for (const ShardEntries& shard : request.shards) {
    writer.Put(shard.slice);
    writer.Put(shard.row);
    writer.Put(shard.weight);
  }
  writer.Put(request.x);
  return writer.Finish();
}

Buffer EncodeReply(const ExpertReply& reply) {
  const size_t row_bytes =
      static_cast<size_t>(reply.hidden) * SizeOf(reply.dtype);
  size_t bytes = sizeof(Header) + reply.shards.size() * sizeof(ShardHeader);
  for (const ShardPartial& shard : reply.shards) {
    CONCLAVE_CHECK_EQ(shard.sum.size(), shard.row.size() * row_bytes);
    bytes += Padded(shard.row.size_bytes()) + Padded(shard.sum.size());
  }
  Writer writer(bytes);
  Header header = MakeHeader(FrameKind::kReply, reply.tag, bytes);
  header.shards = static_cast<int32_t>(reply.shards.size());
  header.hidden = reply.hidden;
  header.dtype = static_cast<uint8_t>(reply.dtype);
  header.reply_dtype = header.dtype;
  writer.PutOne(header);
  for (const ShardPartial& shard : reply.shards) {
    writer.PutOne(ShardHeader{Index(shard.shard),
                              static_cast<int32_t>(shard.row.size())});
  }
  for (const ShardPartial& shard : reply.shards) {
    writer.Put(shard.row);
    writer.Put(shard.sum);
  }
  return writer.Finish();
}

Buffer EncodeError(const ErrorReply& error) {
  const std::string_view message =
      std::string_view(error.message).substr(0, kErrorMessageBytesMax);
  const size_t bytes = sizeof(Header) + Padded(message.size());
  Writer writer(bytes);
  Header header = MakeHeader(FrameKind::kError, error.tag, bytes);
  header.shards = static_cast<int32_t>(error.code);
  header.rows = static_cast<int32_t>(message.size());
  writer.PutOne(header);
  writer.Put(std::span<const char>(message));
  return writer.Finish();
}

absl::StatusOr<FrameKind> PeekKind(std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(Header header, ReadHeader(frame));
  if (header.kind < static_cast<uint8_t>(FrameKind::kRequest) ||
      header.kind > static_cast<uint8_t>(FrameKind::kStep)) {
    return Bad("unknown kind ", header.kind);
  }
  return static_cast<FrameKind>(header.kind);
}

absl::StatusOr<ExpertRequest> DecodeRequest(std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(Header header, ReadHeader(frame, FrameKind::kRequest));
  RETURN_IF_ERROR(CheckSizes(header));
  ExpertRequest request{.tag = TagOf(header),
                        .row_count = header.rows,
                        .hidden = header.hidden,
                        .dtype = static_cast<DType>(header.dtype),
                        .reply_dtype = static_cast<DType>(header.reply_dtype),
                        .shards = {},
                        .x = {}};
  Reader reader(frame.subspan(sizeof(Header)));
  ASSIGN_OR_RETURN(std::span<const ShardHeader> shards,
                   ReadShards(header, &reader));
  request.shards.reserve(shards.size());
  for (const ShardHeader& shard : shards) {
    ShardEntries entries;
    entries.shard = static_cast<ShardId>(shard.shard);
    const auto count = static_cast<uint64_t>(shard.count);
    if (!reader.Take(count, &entries.slice) ||
        !reader.Take(count, &entries.row) ||
        !reader.Take(count, &entries.weight)) {
      return Bad("ends within the entries of a shard");
    }
    RETURN_IF_ERROR(CheckEntries(entries, header.rows));
    request.shards.push_back(entries);
  }
  const uint64_t x_bytes = static_cast<uint64_t>(header.rows) *
                           static_cast<uint64_t>(header.hidden) *
                           SizeOf(request.dtype);
  if (!reader.Take(x_bytes, &request.x)) return Bad("ends within its rows");
  if (!reader.empty()) return Bad("has surplus bytes at its end");
  return request;
}

absl::StatusOr<ExpertReply> DecodeReply(std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(Header header, ReadHeader(frame, FrameKind::kReply));
  RETURN_IF_ERROR(CheckSizes(header));
  ExpertReply reply{.tag = TagOf(header),
                    .hidden = header.hidden,
                    .dtype = static_cast<DType>(header.dtype),
                    .shards = {}};
  const uint64_t row_bytes =
      static_cast<uint64_t>(header.hidden) * SizeOf(reply.dtype);
  Reader reader(frame.subspan(sizeof(Header)));
  ASSIGN_OR_RETURN(std::span<const ShardHeader> shards,
                   ReadShards(header, &reader));
  reply.shards.reserve(shards.size());
  for (const ShardHeader& shard : shards) {
    ShardPartial partial;
    partial.shard = static_cast<ShardId>(shard.shard);
    const auto count = static_cast<uint64_t>(shard.count);
    if (!reader.Take(count, &partial.row) ||
        !reader.Take(count * row_bytes, &partial.sum)) {
      return Bad("ends within the rows of a shard");
    }
    int32_t last = -1;
    for (const int32_t row : partial.row) {
      if (row <= last || row >= limits::kStepRowsMax) {
        return Bad("row ", row, " after ", last);
      }
      last = row;
    }
    reply.shards.push_back(partial);
  }
  if (!reader.empty()) return Bad("has surplus bytes at its end");
  return reply;
}

absl::StatusOr<ErrorReply> DecodeError(std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(Header header, ReadHeader(frame, FrameKind::kError));
  // kOk would turn a failure into a success.
  if (header.shards < 1 || header.shards > 16) {
    return Bad("error code ", header.shards, " is out of bounds");
  }
  if (header.rows < 0 ||
      static_cast<size_t>(header.rows) > kErrorMessageBytesMax) {
    return Bad("message is too long");
  }
  Reader reader(frame.subspan(sizeof(Header)));
  std::span<const char> message;
  if (!reader.Take(static_cast<uint64_t>(header.rows), &message)) {
    return Bad("ends within its message");
  }
  if (!reader.empty()) return Bad("has surplus bytes at its end");
  return ErrorReply{.tag = TagOf(header),
                    .code = static_cast<absl::StatusCode>(header.shards),
                    .message = std::string(message.begin(), message.end())};
}

}  // namespace conclave::transport
