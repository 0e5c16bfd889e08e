// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace conclave::quantize {

// A new file that is written at places known before. Errors name it.
class OutputFile {
 public:
  OutputFile() = default;
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // The file must not exist.
  absl::Status Open(const std::string& path);
  absl::Status Write(uint64_t at, std::span<const std::byte> bytes);
  // Returns when the disk has it.
  absl::Status Close();

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace conclave::quantize
