// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/quantize.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bf16.h"
#include "common/checkpoint/linear.h"
#include "common/status_macros.h"
#include "coordinator/quantize/decode.h"
#include "coordinator/quantize/encode.h"
#include "coordinator/quantize/output_file.h"
#include "kernels/weight.h"

namespace conclave::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using checkpoint::Checkpoint;
using checkpoint::Linear;

constexpr int64_t kChunkFloats = int64_t{1} << 20;  // held at once, 4 MiB

// Places of a weight's tensors in the file, one after another.
std::vector<uint64_t> Offsets(const OutputWeight& weight, uint64_t at) {
  std::vector<uint64_t> out;
  for (const OutputTensor& tensor : weight.tensors) {
    out.push_back(at);
    at += tensor.bytes;
  }
  return out;
}

// `reader`: whose layout it is, "mlx" or "pt".
std::string Header(std::span<const OutputWeight> weights, const char* reader) {
  json::object header{{"__metadata__", {{"format", reader}}}};
  uint64_t at = 0;
  for (const OutputWeight& weight : weights) {
    for (const OutputTensor& tensor : weight.tensors) {
      const std::string_view dtype = Name(tensor.dtype);
      header[tensor.name] = {
          {"dtype", json::string_view(dtype.data(), dtype.size())},
          {"shape", json::array(tensor.shape.begin(), tensor.shape.end())},
          {"data_offsets", {at, at + tensor.bytes}}};
      at += tensor.bytes;
    }
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) +
         text;
}

// The linears of the source that one weight of the output takes, in order.
absl::StatusOr<std::vector<Linear>> Sources(const Checkpoint& source,
                                            const OutputWeight& weight) {
  const std::string module = weight.key.substr(0, weight.key.rfind('.'));
  const std::string part = module.substr(module.rfind('.') + 1);
  const auto pick = [&](const checkpoint::Expert& expert) {
    return part == "gate_proj" ? expert.gate
           : part == "up_proj" ? expert.up
                               : expert.down;
  };
  std::vector<Linear> out;
  const size_t stacked = module.find("switch_mlp.");
  const size_t single = module.find("experts.");
  if (stacked != module.npos) {
    for (int32_t e = 0; e < source.config().num_experts; ++e) {
      ASSIGN_OR_RETURN(const checkpoint::Expert expert,
                       checkpoint::FindExpert(
                           source, module.substr(0, stacked), ExpertId{e}));
      out.push_back(pick(expert));
    }
  } else if (single != module.npos) {
    const int e = std::atoi(module.c_str() + single + strlen("experts."));
    ASSIGN_OR_RETURN(
        const checkpoint::Expert expert,
        checkpoint::FindExpert(source, module.substr(0, single), ExpertId{e}));
    out.push_back(pick(expert));
  } else {
    ASSIGN_OR_RETURN(Linear linear, checkpoint::FindLinear(source, module));
    out.push_back(std::move(linear));
  }
  return out;
}

class Writer {
 public:
  Writer(const Checkpoint& source,
         const Target& target,
         ThreadPool* pool,
         const QuantizeProgressFn& progress)
      : source_(source), target_(target), pool_(pool), progress_(progress) {
    for (const auto* list : {&target.weights, &target.mtp}) {
      for (const OutputWeight& weight : *list) total_ += weight.bytes();
    }
  }

  uint64_t total() const { return total_; }

  absl::Status File(const std::string& path,
                    std::span<const OutputWeight> weights) {
    OutputFile file;
    RETURN_IF_ERROR(file.Open(path));
    const std::string header =
        Header(weights, target_.format == TargetFormat::kFp8 ? "pt" : "mlx");
    RETURN_IF_ERROR(file.Write(0, std::as_bytes(std::span(header))));
    uint64_t at = header.size();
    for (const OutputWeight& weight : weights) {
      RETURN_IF_ERROR(weight.linear ? Matrices(weight, at, file)
                                    : Vector(weight, at, file));
      at += weight.bytes();
    }
    return file.Close();
  }

 private:
  // Vectors and the convolution, whose order of numbers is the same in both
  // layouts.
  absl::Status Vector(const OutputWeight& weight,
                      uint64_t at,
                      OutputFile& file) {
    ASSIGN_OR_RETURN(std::vector<float> values, source_.ReadFloats(weight.key));
    const float shift = (target_.format != TargetFormat::kFp8 ? 1.0f : 0.0f) -
                        (source_.folded_norms() ? 1.0f : 0.0f);
    if (IsZeroCentred(weight.key)) {
      for (float& value : values) value += shift;
    }
    return Floats(weight, at, values, file);
  }

  // Every norm but that of Gated DeltaNet.
  static bool IsZeroCentred(std::string_view key) {
    return key.starts_with("mtp.pre_fc_norm_") ||
           (key.ends_with("norm.weight") &&
            key.find("linear_attn") == std::string::npos);
  }

  absl::Status Floats(const OutputWeight& weight,
                      uint64_t at,
                      std::span<const float> values,
                      OutputFile& file) {
    if (weight.tensors[0].dtype == DType::kF32) {
      return Put(file, at, std::as_bytes(values));
    }
    halves_.resize(values.size());
    std::transform(values.begin(), values.end(), halves_.begin(), ToBf16);
    return Put(file, at, std::as_bytes(std::span(halves_)));
  }

  absl::Status Put(OutputFile& file,
                   uint64_t at,
                   std::span<const std::byte> bytes) {
    RETURN_IF_ERROR(file.Write(at, bytes));
    done_ += bytes.size();
    if (progress_) progress_(done_, total_);
    return absl::OkStatus();
  }

  absl::Status Matrices(const OutputWeight& weight,
                        uint64_t at,
                        OutputFile& file) {
    ASSIGN_OR_RETURN(const std::vector<Linear> linears,
                     Sources(source_, weight));
    std::vector<uint64_t> offsets = Offsets(weight, at);
    for (const Linear& linear : linears) {
      const int64_t rows = linear.layout.rows, cols = linear.layout.cols;
      // GPTQ's columns lie apart in the file: whole, an expert at a time.
      const int64_t fitting = kChunkFloats / cols / kFp8Block * kFp8Block;
      const int64_t step =
          linear.transposed ? rows : std::max<int64_t>(fitting, kFp8Block);
      for (int64_t row = 0; row < rows; row += step) {
        RETURN_IF_ERROR(Decode(linear, row, std::min(row + step, rows)));
        if (weight.tensors[0].dtype == DType::kF8E4M3) {
          RETURN_IF_ERROR(Fp8(cols, offsets, file));
        } else if (weight.affine.bits > 0) {
          RETURN_IF_ERROR(Affine(weight.affine, cols, offsets, file));
        } else {
          RETURN_IF_ERROR(Floats(weight, offsets[0], values_, file));
          offsets[0] += halves_.size() * sizeof(uint16_t);
        }
      }
    }
    return absl::OkStatus();
  }

  // Rows [begin, end) in float32, into values_.
  absl::Status Decode(const Linear& linear, int64_t begin, int64_t end) {
    const checkpoint::Cut cut{begin, end, 0, linear.layout.cols};
    ASSIGN_OR_RETURN(const WeightLayout layout,
                     checkpoint::LayoutOf(linear, cut, /*stacked=*/false));
    data_.resize(layout.data_bytes());
    scales_in_.resize(layout.scale_bytes());
    biases_in_.resize(layout.bias_bytes());
    RETURN_IF_ERROR(checkpoint::ReadPart(
        source_, linear, cut, layout, {data_, scales_in_, biases_in_}));
    const kernels::WeightView view = kernels::ViewOf(
        {.layout = layout,
         .data = data_.data(),
         .scales = scales_in_.data(),
         .biases = layout.biases ? biases_in_.data() : nullptr});
    values_.resize(layout.rows * layout.cols);
    pool_->ParallelFor(layout.rows, 16, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) {
        DecodeRowFast(
            view, r, std::span(values_).subspan(r * layout.cols, layout.cols));
      }
    });
    return absl::OkStatus();
  }

  absl::Status Affine(const checkpoint::AffineFormat& format,
                      int64_t cols,
                      std::vector<uint64_t>& offsets,
                      OutputFile& file) {
    const int64_t rows = static_cast<int64_t>(values_.size()) / cols;
    const int64_t row_bytes = cols * format.bits / 8;
    const int64_t groups = cols / format.group;
    codes_.resize(rows * row_bytes);
    halves_.resize(rows * groups);
    biases_.resize(rows * groups);
    pool_->ParallelFor(rows, 16, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) {
        EncodeAffine(std::span(values_).subspan(r * cols, cols),
                     format,
                     std::span(codes_).subspan(r * row_bytes, row_bytes),
                     std::span(halves_).subspan(r * groups, groups),
                     std::span(biases_).subspan(r * groups, groups));
      }
    });
    return Parts({std::as_bytes(std::span(codes_)),
                  std::as_bytes(std::span(halves_)),
                  std::as_bytes(std::span(biases_))},
                 offsets,
                 file);
  }

  absl::Status Fp8(int64_t cols,
                   std::vector<uint64_t>& offsets,
                   OutputFile& file) {
    const int64_t rows = static_cast<int64_t>(values_.size()) / cols;
    const int64_t line = Fp8Blocks(cols);
    codes_.resize(rows * cols);
    halves_.resize(Fp8Blocks(rows) * line);
    pool_->ParallelFor(Fp8Blocks(rows), 1, [&](int64_t from, int64_t to) {
      for (int64_t block = from; block < to; ++block) {
        const int64_t begin = block * kFp8Block;
        const int64_t count = std::min<int64_t>(kFp8Block, rows - begin);
        EncodeFp8(std::span(values_).subspan(begin * cols, count * cols),
                  cols,
                  std::span(codes_).subspan(begin * cols, count * cols),
                  std::span(halves_).subspan(block * line, line));
      }
    });
    return Parts(
        {std::as_bytes(std::span(codes_)), std::as_bytes(std::span(halves_))},
        offsets,
        file);
  }

  absl::Status Parts(const std::vector<std::span<const std::byte>>& parts,
                     std::vector<uint64_t>& offsets,
                     OutputFile& file) {
    for (size_t i = 0; i < parts.size(); ++i) {
      RETURN_IF_ERROR(Put(file, offsets[i], parts[i]));
      offsets[i] += parts[i].size();
    }
    return absl::OkStatus();
  }

  const Checkpoint& source_;
  const Target& target_;
  ThreadPool* const pool_;
  const QuantizeProgressFn progress_;
  std::vector<std::byte> data_, scales_in_, biases_in_;
  std::vector<float> values_;
  std::vector<uint8_t> codes_;
  std::vector<uint16_t> halves_, biases_;
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

absl::Status CheckRoom(const fs::path& out, uint64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(out, error);
  if (error || space.available >= bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s: needs %.1f GB, %.1f GB free on the disk",
                      out.string(),
                      static_cast<double>(bytes) / 1e9,
                      static_cast<double>(space.available) / 1e9));
}

absl::Status PrepareFolder(const fs::path& out) {
  std::error_code error;
  fs::create_directories(out, error);
  if (error || !fs::is_directory(out)) {
    return absl::InvalidArgumentError(
        absl::StrCat(out.string(), ": cannot be made: ", error.message()));
  }
  if (!fs::is_empty(out, error) || error) {
    return absl::FailedPreconditionError(absl::StrCat(
        out.string(), ": is not empty; name a new folder, or clear this one"));
  }
  return absl::OkStatus();
}

absl::Status WriteText(const fs::path& path, const std::string& text) {
  OutputFile file;
  RETURN_IF_ERROR(file.Open(path.string()));
  RETURN_IF_ERROR(file.Write(0, std::as_bytes(std::span(text))));
  return file.Close();
}

// Tokenizer, chat template and the like.
absl::Status CopyRest(const fs::path& from, const fs::path& out) {
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name == "config.json" ||
        name.find(".safetensors") != name.npos) {
      continue;
    }
    std::error_code error;
    if (!fs::copy_file(entry.path(), out / name, error)) {
      return absl::InternalError(absl::StrCat(
          (out / name).string(), ": cannot be copied: ", error.message()));
    }
  }
  return absl::OkStatus();
}

// Weights [begin, end) of each file.
std::vector<std::pair<size_t, size_t>> Split(
    const std::vector<OutputWeight>& weights, uint64_t limit) {
  std::vector<std::pair<size_t, size_t>> out;
  uint64_t bytes = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const uint64_t own = weights[i].bytes();
    if (out.empty() || bytes + own > limit) {
      out.emplace_back(i, i);
      bytes = 0;
    }
    bytes += own;
    out.back().second = i + 1;
  }
  return out;
}

}  // namespace

absl::Status Quantize(const Checkpoint& source,
                      const Target& target,
                      const QuantizeOptions& options,
                      ThreadPool* pool,
                      const QuantizeProgressFn& progress) {
  const fs::path out = options.out;
  RETURN_IF_ERROR(PrepareFolder(out));
  Writer writer(source, target, pool, progress);
  RETURN_IF_ERROR(CheckRoom(out, writer.total()));
  const auto files = Split(target.weights, options.file_bytes_max);
  json::object map;
  uint64_t indexed = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto [begin, end] = files[i];
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, files.size());
    const std::span<const OutputWeight> weights(target.weights.data() + begin,
                                                end - begin);
    RETURN_IF_ERROR(writer.File((out / name).string(), weights));
    for (const OutputWeight& weight : weights) {
      indexed += weight.bytes();
      for (const OutputTensor& tensor : weight.tensors) map[tensor.name] = name;
    }
  }
  if (!target.mtp.empty()) {
    fs::create_directory(out / "mtp");
    RETURN_IF_ERROR(
        writer.File((out / "mtp/weights.safetensors").string(), target.mtp));
  }
  const json::object index{{"metadata", {{"total_size", indexed}}},
                           {"weight_map", std::move(map)}};
  RETURN_IF_ERROR(
      WriteText(out / "model.safetensors.index.json", json::serialize(index)));
  RETURN_IF_ERROR(CopyRest(source.folder(), out));
  return WriteText(out / "config.json", target.config_json);
}

}  // namespace conclave::quantize
