// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/sha256.h"

#include <openssl/sha.h>

namespace conclave::checkpoint {

std::string Sha256(std::string_view bytes) {
  std::string out(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()),
         bytes.size(),
         reinterpret_cast<unsigned char*>(out.data()));
  return out;
}

}  // namespace conclave::checkpoint
