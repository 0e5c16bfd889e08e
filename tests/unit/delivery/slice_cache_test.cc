// SPDX-License-Identifier: Apache-2.0
#include "common/delivery/slice_cache.h"

#include <filesystem>
#include <set>

#include "tests/unit/delivery/fixture.h"

namespace conclave::delivery {
namespace {

using ::testing::HasSubstr;

class SliceCacheTest : public testing::DeliveryTest {
 protected:
  struct Item {
    checkpoint::SliceLayout layout;
    Buffer bytes;
    ContentHash hash;
    checkpoint::SliceSpans spans() { return SpansOver(bytes.bytes(), layout); }
  };
  Item Read(int32_t expert) {
    const Slice slice{LayerId{0}, ExpertId{expert}, 0, 32};
    Item out;
    out.layout = *checkpoint::LayoutOfSlice(*checkpoint_, slice);
    out.bytes = Buffer(out.layout.bytes());
    EXPECT_TRUE(
        checkpoint::ReadSlice(*checkpoint_, slice, out.layout, out.spans())
            .ok());
    out.hash = HashOf(out.layout, out.spans());
    return out;
  }
};

TEST_F(SliceCacheTest, GivesBackWhatItTook) {
  auto cache = *SliceCache::Open(Folder("c"), 0);
  EXPECT_TRUE(cache->IsEmpty());
  Item item = Read(0);
  EXPECT_FALSE(cache->Holds(item.hash));
  EXPECT_EQ(cache->Read(item.hash, item.layout, item.spans()).code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(cache->Write(item.hash, item.spans()).ok());
  EXPECT_FALSE(cache->IsEmpty());
  Item copy = Read(1);
  ASSERT_TRUE(cache->Read(item.hash, item.layout, copy.spans()).ok());
  EXPECT_EQ(std::memcmp(copy.bytes.data(), item.bytes.data(), 12288), 0);
  const auto part = cache->ReadRange(item.hash, 100, 50);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(std::memcmp(part->data(), item.bytes.data() + 100, 50), 0);
  EXPECT_FALSE(cache->ReadRange(item.hash, 12000, 300).ok());
  EXPECT_FALSE(cache->ReadRange(item.hash, UINT64_MAX, 2).ok());
}

// One stored otherwise is another content, even with the same bytes.
TEST_F(SliceCacheTest, TheHashCoversTheLayout) {
  Item item = Read(0);
  checkpoint::SliceLayout other = item.layout;
  std::swap(other.gate, other.down);
  other.up.dtype = DType::kF16;
  EXPECT_NE(HashOf(other, item.spans()), item.hash);
}

TEST_F(SliceCacheTest, TrimKeepsWhatIsInUseAndWhatWasUsedLast) {
  auto cache = *SliceCache::Open(Folder("c"), 2 * kSliceBytes);
  std::vector<Item> items;
  for (int32_t e = 0; e < 4; ++e) {
    items.push_back(Read(e));
    ASSERT_TRUE(cache->Write(items.back().hash, items.back().spans()).ok());
    // Coarse file times must not decide.
    for (const auto& file : CacheFiles(Folder("c"))) {
      std::filesystem::last_write_time(
          file,
          std::filesystem::last_write_time(file) - std::chrono::seconds(10));
    }
  }
  // 0 is in use; 1 was read just now.
  ASSERT_TRUE(
      cache->Read(items[1].hash, items[1].layout, items[1].spans()).ok());
  cache->Trim([&](const ContentHash& h) { return h == items[0].hash; });
  EXPECT_TRUE(cache->Holds(items[0].hash));
  EXPECT_TRUE(cache->Holds(items[1].hash));
  EXPECT_FALSE(cache->Holds(items[2].hash));
  EXPECT_FALSE(cache->Holds(items[3].hash));
}

TEST_F(SliceCacheTest, LeftoversOfDeadProgramsAreRemoved) {
  { auto cache = *SliceCache::Open(Folder("c"), 0); }
  const auto left = std::filesystem::path(Folder("c")) / "unfinished";
  std::ofstream(left / "999999999.0") << "half";
  std::ofstream(left / absl::StrCat(getpid(), ".7")) << "being written";
  auto cache = *SliceCache::Open(Folder("c"), 0);
  EXPECT_FALSE(std::filesystem::exists(left / "999999999.0"));
  EXPECT_TRUE(std::filesystem::exists(left / absl::StrCat(getpid(), ".7")));
}

TEST_F(SliceCacheTest, AFolderThatCannotBeMadeIsNamed) {
  std::ofstream(Folder("file")) << "not a folder";
  const auto cache = SliceCache::Open(Folder("file") + "/c", 0);
  EXPECT_THAT(cache.status().ToString(), HasSubstr(Folder("file") + "/c"));
}

TEST(CacheFolder, FollowsTheWordThenTheEnvironment) {
  EXPECT_EQ(CacheFolder("off"), "");
  EXPECT_EQ(CacheFolder("/x/y"), "/x/y");
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  EXPECT_EQ(CacheFolder(""), "/xdg/conclave");
  unsetenv("XDG_CACHE_HOME");
  setenv("HOME", "/home/me", 1);
  EXPECT_EQ(CacheFolder(""), "/home/me/.cache/conclave");
}

}  // namespace
}  // namespace conclave::delivery
