// SPDX-License-Identifier: Apache-2.0
#include "coordinator/delivery/manifest.h"

#include "tests/unit/delivery/fixture.h"

namespace conclave::delivery {
namespace {

class ManifestTest : public testing::DeliveryTest {
 protected:
  std::unique_ptr<Manifest> Open() const {
    return std::make_unique<Manifest>(*checkpoint_, Folder("m"));
  }
  const Slice slice_{LayerId{1}, ExpertId{2}, 0, 32};
  const ContentHash hash_ = {1, 2, 3};
};

TEST_F(ManifestTest, IsReadAgain) {
  auto manifest = Open();
  EXPECT_FALSE(manifest->Find(slice_).has_value());
  manifest->Put(slice_, hash_);
  manifest->Save();
  EXPECT_EQ(Open()->Find(slice_), hash_);
  EXPECT_EQ(Open()->source(), manifest->source());
}

TEST_F(ManifestTest, DamageIsNoticed) {
  auto manifest = Open();
  manifest->Put(slice_, hash_);
  manifest->Save();
  const auto files = CacheFiles(Folder("m"));
  ASSERT_EQ(files.size(), 1u);
  FlipByte(files[0], 40);
  EXPECT_FALSE(Open()->Find(slice_).has_value());
  std::filesystem::resize_file(files[0], 30);
  EXPECT_FALSE(Open()->Find(slice_).has_value());
}

TEST_F(ManifestTest, BelongsToOneStateOfTheFiles) {
  auto manifest = Open();
  manifest->Put(slice_, hash_);
  manifest->Save();
  const std::string before = manifest->source();
  const auto file = model_ / "model.safetensors";
  std::filesystem::last_write_time(
      file, std::filesystem::last_write_time(file) + std::chrono::seconds(5));
  EXPECT_NE(Open()->source(), before);
  EXPECT_FALSE(Open()->Find(slice_).has_value());
}

TEST_F(ManifestTest, WorksWithoutAFolder) {
  Manifest manifest(*checkpoint_, "");
  manifest.Put(slice_, hash_);
  manifest.Save();
  EXPECT_EQ(manifest.Find(slice_), hash_);
}

}  // namespace
}  // namespace conclave::delivery
