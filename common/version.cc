// SPDX-License-Identifier: Apache-2.0
#include "common/version.h"

namespace conclave {

std::string_view Version() { return CONCLAVE_VERSION; }

}  // namespace conclave
