// SPDX-License-Identifier: BSD-3-Clause
// Descriptors on disk, and docs/descriptor-format.md: it is normative, its example is the input.
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "descriptor/descriptor.hpp"
#include "tests/unit/descriptor_sample.hpp"
#include "tests/unit/wire_examples.hpp"

namespace snowfabric {
namespace {

using namespace test;
using ::testing::HasSubstr;

/// A directory of one test, removed with everything in it.
class DescriptorFile : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "sf_desc_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    path_ = (dir_ / "vm.desc").string();
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  [[nodiscard]] std::ptrdiff_t nb_files() const {
    return std::distance(std::filesystem::directory_iterator{dir_}, {});
  }
  [[nodiscard]] Error write_error(const Descriptor& d) const {
    const auto ok = write_descriptor(d, path_);
    return ok ? Error{0, "written"} : ok.error();
  }
  [[nodiscard]] Error read_error() const {
    const auto d = read_descriptor(path_);
    return d ? Error{0, "read"} : d.error();
  }
  std::filesystem::path dir_;
  std::string path_;
};

TEST_F(DescriptorFile, ReadsBackAsItWasWrittenForItsOwnerAlone) {
  ASSERT_EQ(write_error(sample_descriptor()).errnum, 0);
  EXPECT_EQ(read_descriptor(path_).value(), sample_descriptor());
  EXPECT_EQ(nb_files(), 1);
  struct stat st{};
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777U, 0600U);
}

TEST_F(DescriptorFile, WritingReplacesTheFileAndLeavesTheOldOneToItsReaders) {
  ASSERT_EQ(write_error(sample_descriptor()).errnum, 0);
  std::ifstream old{path_, std::ios::binary};
  Descriptor next = sample_descriptor();
  next.epoch = 8;
  ASSERT_EQ(write_error(next).errnum, 0);
  EXPECT_EQ(read_descriptor(path_).value(), next);
  const std::string text{std::istreambuf_iterator<char>{old}, {}};
  EXPECT_EQ(decode(bytes_of(text)).value(), sample_descriptor());
  EXPECT_EQ(nb_files(), 1);
}

TEST_F(DescriptorFile, AFullDiskLeavesTheOldFileAndNothingElse) {
  ASSERT_EQ(write_error(sample_descriptor()).errnum, 0);
  Descriptor big = sample_descriptor();
  big.sections[1].bytes.resize(64 * 1024);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{8192, before.rlim_max};  // a part is written before write(2) fails
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Error error = write_error(big);
  ::setrlimit(RLIMIT_FSIZE, &before);
  static_cast<void>(std::signal(SIGXFSZ, handler));
  EXPECT_EQ(error.errnum, EFBIG);
  EXPECT_THAT(error.what, HasSubstr("write(" + path_));
  EXPECT_EQ(nb_files(), 1);
  EXPECT_EQ(read_descriptor(path_).value(), sample_descriptor());
}

/// As somebody else than root, who may do all.
class AsNobody {
 public:
  AsNobody() : euid_{::geteuid()} { static_cast<void>(::seteuid(euid_ == 0 ? 65534 : euid_)); }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;
  ~AsNobody() { static_cast<void>(::seteuid(euid_)); }

 private:
  uid_t euid_;
};

TEST_F(DescriptorFile, AFolderThatCannotBeSyncedGetsNoFile) {
  ASSERT_EQ(::chmod(dir_.c_str(), 0333), 0);  // files can be made in it, but it cannot be opened
  Error error;
  {
    const AsNobody nobody;
    error = write_error(sample_descriptor());
  }
  ASSERT_EQ(::chmod(dir_.c_str(), 0700), 0);
  EXPECT_EQ(error.errnum, EACCES);
  EXPECT_EQ(nb_files(), 0);
}

TEST_F(DescriptorFile, ABadDescriptorWritesNothing) {
  EXPECT_EQ(write_error(Descriptor{}).errnum, EINVAL);
  EXPECT_EQ(nb_files(), 0);
}

TEST_F(DescriptorFile, OnlyRegularFilesAreReadOrReplaced) {
  EXPECT_EQ(read_error().errnum, ENOENT);
  EXPECT_THAT(read_error().what, HasSubstr(path_));
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(read_error().errnum, EINVAL) << "and does not wait for a writer";
  EXPECT_EQ(write_error(sample_descriptor()).errnum, EINVAL);
  EXPECT_TRUE(std::filesystem::is_fifo(path_));
  path_ = dir_.string();
  EXPECT_EQ(read_error().errnum, EINVAL);
  EXPECT_EQ(write_error(sample_descriptor()).errnum, EINVAL);
  path_ = (dir_ / "no" / "vm.desc").string();
  EXPECT_EQ(write_error(sample_descriptor()).errnum, ENOENT);
}

TEST_F(DescriptorFile, ErrorsOfTheContentNameTheFile) {
  std::ofstream{path_} << "SFVMDESC and more";
  EXPECT_EQ(read_error().errnum, EBADMSG);
  EXPECT_THAT(read_error().what, HasSubstr(path_ + ": descriptor: truncated"));
}

TEST_F(DescriptorFile, AFileTooLargeIsNotRead) {
  std::ofstream{path_} << "SFVMDESC";
  std::filesystem::resize_file(path_, std::uintmax_t{1} << 40U);  // a hole
  EXPECT_EQ(read_error().errnum, EFBIG);
}

constexpr const char* kDocument = SNOWFABRIC_SOURCE_DIR "/docs/descriptor-format.md";

std::vector<std::string> texts(std::span<const PageRange> ranges) {
  std::vector<std::string> all;
  for (const auto& [first, nb_pages] : ranges)
    all.push_back(fmt::format("{}+{}", first.value, nb_pages));
  return all;
}

TEST(DescriptorDocument, ItsExampleDecodesToItsFieldsAndEncodesToItsBytes) {
  const auto examples = read_wire_examples(kDocument);
  ASSERT_EQ(examples.size(), 1U);
  const WireExample& example = examples.front();
  const auto decoded = decode(example.bytes);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().what;
  const Descriptor& d = *decoded;
  EXPECT_EQ(d.image_id, example.number("image_id"));
  EXPECT_EQ(d.group, group_address(d.image_id));
  EXPECT_EQ(d.epoch, example.number("epoch"));
  EXPECT_EQ(to_string(d.group), example.text("group"));
  EXPECT_EQ(to_string(d.server), example.text("server"));
  EXPECT_EQ(d.frozen_at_ns, example.number("frozen_at_ns"));
  EXPECT_EQ(d.parent_name, example.text("parent_name"));
  std::string uuid;
  for (const std::uint8_t byte : d.parent_uuid) uuid += fmt::format("{:02x}", byte);
  EXPECT_EQ(uuid, example.text("parent_uuid"));
  EXPECT_EQ(d.machine_args, example.all("machine_arg"));
  EXPECT_EQ(texts(d.zero_pages), example.all("zero_pages"));
  EXPECT_EQ(texts(d.absent_pages), example.all("absent_pages"));
  EXPECT_EQ(texts(d.working_set), example.all("working_set"));
  std::vector<std::string> spaces, blocks, sections;
  for (const auto& [space, nb_pages] : d.spaces)
    spaces.push_back(fmt::format("{}:{}", space, nb_pages));
  for (const auto& [name, first, nb_pages, used] : d.blocks)
    blocks.push_back(fmt::format("{}:{}+{}:{}", name, first, nb_pages, used));
  for (const auto& [type, bytes] : d.sections)
    sections.push_back(fmt::format("{}:{}", static_cast<unsigned>(type), bytes.size()));
  EXPECT_EQ(spaces, example.all("space"));
  EXPECT_EQ(blocks, example.all("block"));
  EXPECT_EQ(sections, example.all("section"));
  EXPECT_TRUE(std::ranges::equal(encode(d).value(), example.bytes));
}

TEST(DescriptorDocument, HasEveryBound) {
  std::ifstream file{kDocument};
  const std::string text{std::istreambuf_iterator<char>{file}, {}};
  for (const auto& [name, bound] :
       {std::pair{"kMaxDescriptorBodyBytes", std::uint64_t{kMaxDescriptorBodyBytes}},
        {"kMaxImagePages", kMaxImagePages},
        {"kMaxSpaces", kMaxSpaces},
        {"kMaxRamBlocks", kMaxRamBlocks},
        {"kMaxSections", kMaxSections},
        {"kMaxMachineArgs", kMaxMachineArgs},
        {"kMaxMachineArgBytes", kMaxMachineArgBytes},
        {"kMaxNameBytes", kMaxNameBytes},
        {"kMaxPageRanges", kMaxPageRanges}})
    EXPECT_THAT(text, HasSubstr(fmt::format("| `{}` | {} |", name, bound)));
}

}  // namespace
}  // namespace snowfabric
