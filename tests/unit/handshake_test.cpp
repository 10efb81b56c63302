// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/handshake.hpp"

#include <cerrno>
#include <optional>

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/unit/guest_peer.hpp"

namespace snowfabric {
namespace {

using testing::count_open_fds;
using ::testing::HasSubstr;
using testing::send_with_fds;
using testing::UffdMemory;

constexpr std::uint64_t kImageBytes = 0x100000;

std::string region(std::string_view base, std::string_view size, std::string_view offset,
                   std::string_view more = "") {
  return fmt::format(R"({{"base_host_virt_addr":{},"size":{},"offset":{}{}}})", base, size, offset,
                     more);
}
std::string one(std::string_view base, std::string_view size, std::string_view offset,
                std::string_view more = "") {
  return "[" + region(base, size, offset, more) + "]";
}
const std::string kGood = one("4096", "8192", "0");

Error error_of(std::string_view json) {
  const auto regions = parse_handshake(json, kImageBytes);
  if (regions) return {0, "accepted"};
  return regions.error();
}

TEST(ParseHandshake, TakesTheFieldSetsOfEveryFirecracker) {
  const std::vector<Region> expected{{0x7f0000000000, 8192, 4096}};
  for (const std::string_view more : {"", R"(,"page_size":4096)", R"(,"page_size_kib":4096)",
                                      R"(,"page_size":4096,"page_size_kib":4096)",
                                      R"(,"page_size":4096,"prot":3,"later":{"nested":["]"]})"}) {
    const auto regions = parse_handshake(one("139637976727552", "8192", "4096", more), kImageBytes);
    ASSERT_TRUE(regions.has_value()) << more << ": " << regions.error().what;
    EXPECT_EQ(*regions, expected) << more;
  }
}

TEST(ParseHandshake, TakesSeveralRegionsInAnyOrder) {
  const auto json =
      "[" + region("1048576", "4096", "4096") + ",\n " + region("4096", "4096", "0") + "]";
  const auto regions = parse_handshake(json, kImageBytes);
  ASSERT_TRUE(regions.has_value()) << regions.error().what;
  EXPECT_EQ(*regions, (std::vector<Region>{{1048576, 4096, 4096}, {4096, 4096, 0}}));
}

TEST(ParseHandshake, NamesAnUnsupportedPageSize) {
  const Error huge = error_of(one("4096", "8192", "0", R"(,"page_size":2097152)"));
  EXPECT_EQ(huge.errnum, EOPNOTSUPP);
  EXPECT_THAT(huge.what, HasSubstr("page_size 2097152"));
  // What the name promises is not what Firecracker sends: 4 would be a page of four bytes.
  const Error kib = error_of(one("4096", "8192", "0", R"(,"page_size_kib":4)"));
  EXPECT_EQ(kib.errnum, EOPNOTSUPP);
  EXPECT_THAT(kib.what, HasSubstr("page_size_kib 4:"));
}

TEST(ParseHandshake, RefusesWhatIsNotAnArrayOfRegions) {
  for (const std::string_view json : {"", "{}", "[", "[]", "[1]", "[[]]", "[{}]", "null", "[{},]"})
    EXPECT_EQ(error_of(json).errnum, EINVAL) << json;
  for (const std::string_view size :
       {"-4096", "4096.0", "\"4096\"", "null", "99999999999999999999"})
    EXPECT_EQ(error_of(one("4096", size, "0")).errnum, EINVAL) << size;
  EXPECT_EQ(error_of(one("4096", "4096", "0", R"(,"page_size":"4096")")).errnum, EINVAL);
}

TEST(ParseHandshake, RefusesRegionsThatAreEmptyUnalignedOrOutsideTheImage) {
  EXPECT_THAT(error_of(one("4096", "0", "0")).what, HasSubstr("empty"));
  EXPECT_THAT(error_of(one("4097", "4096", "0")).what, HasSubstr("0x1001 is not a multiple"));
  EXPECT_THAT(error_of(one("4096", "4095", "0")).what, HasSubstr("multiple"));
  EXPECT_THAT(error_of(one("4096", "4096", "1")).what, HasSubstr("multiple"));
  EXPECT_THAT(error_of(one("4096", "1048576", "4096")).what, HasSubstr("beyond the image"));
  EXPECT_THAT(error_of(one("4096", "4096", "1048576")).what, HasSubstr("beyond the image"));
  // 2^64 - 4096: the sums wrap.
  EXPECT_THAT(error_of(one("18446744073709547520", "4096", "0")).what, HasSubstr("address space"));
  EXPECT_THAT(error_of(one("4096", "4096", "18446744073709547520")).what, HasSubstr("the image"));
  EXPECT_EQ(error_of(one("4096", "1048576", "0")).errnum, 0) << "exactly the image fits";
}

TEST(ParseHandshake, RefusesRegionsThatOverlapInMemoryOrInTheImage) {
  const auto two = [](std::string_view base, std::string_view offset) {
    return "[" + region("65536", "8192", "8192") + "," + region(base, "8192", offset) + "]";
  };
  EXPECT_EQ(error_of(two("73728", "16384")).errnum, 0) << "side by side is fine";
  EXPECT_THAT(error_of(two("69632", "16384")).what, HasSubstr("overlap at address 0x11000"));
  EXPECT_THAT(error_of(two("61440", "16384")).what, HasSubstr("overlap at address"));
  EXPECT_THAT(error_of(two("1048576", "12288")).what, HasSubstr("overlap at offset 0x3000"));
  EXPECT_THAT(error_of(two("1048576", "8192")).what, HasSubstr("overlap at offset"));
}

TEST(ParseHandshake, BoundsTheNumberOfRegionsAndTheMessage) {
  const auto regions = [](std::size_t n) {
    std::string json = "[";
    for (std::size_t i = 0; i < n; ++i)
      json += (i == 0 ? "" : ",") + region(std::to_string(0x10000 + i * kPageSize), "4096",
                                           std::to_string(i * kPageSize));
    return json + "]";
  };
  EXPECT_EQ(error_of(regions(kMaxRegions)).errnum, 0);
  EXPECT_EQ(error_of(regions(kMaxRegions + 1)).errnum, E2BIG);
  EXPECT_EQ(error_of(kGood + std::string(kMaxHandshakeBytes, ' ')).errnum, E2BIG);
  EXPECT_EQ(error_of(std::string(kMaxHandshakeBytes, '[')).errnum, EINVAL) << "deep nesting";
}

TEST(ParseHandshake, TakesTheDomainOfAXenClone) {
  constexpr std::string_view kClone =
      R"([{"adapter": "xen", "domain": 7, "image": "1f-2", "recover": true}])";
  EXPECT_EQ(handover_of(kClone), Handover::kXen);
  EXPECT_EQ(xen_domain_of(kClone),
            (XenDomainRequest{.domain = 7, .image = "1f-2", .recover = true}));
  EXPECT_EQ(xen_domain_of(R"([{"adapter": "xen", "domain": 32751, "image": ""}])"),
            (XenDomainRequest{.domain = 32751, .image = "", .recover = false}));
}

TEST(ParseHandshake, RefusesWhatIsNoDomainThatCanBeACloneOfXen) {
  for (const char* domain : {"0", "-1", "32752", "1.5", "\"7\"", "null", "18446744073709551615"}) {
    const auto request =
        xen_domain_of(std::string{R"([{"adapter": "xen", "domain": )"} + domain + "}]");
    ASSERT_FALSE(request) << domain;
    EXPECT_THAT(request.error().what, HasSubstr("number of a domain other than dom0"));
  }
  EXPECT_EQ(
      xen_domain_of(R"([{"adapter": "xen", "domain": 7, "image": "", "asked": [5, 0]}])")->asked,
      (std::vector{Gfn{5}, Gfn{0}}));
  for (const char* asked : {"1", "[-1]", "[\"a\"]", "[1.5]", "{}"})
    EXPECT_FALSE(xen_domain_of(
        std::string{R"([{"adapter": "xen", "domain": 7, "image": "", "asked": )"} + asked + "}]"))
        << asked;
  EXPECT_FALSE(xen_domain_of(R"([{"adapter": "xen"}])"));
  EXPECT_FALSE(xen_domain_of(R"([{"adapter": "xen", "domain": 7, "image": "", "recover": 1}])"));
  EXPECT_FALSE(xen_domain_of(R"([{"adapter": "xen", "domain": 7, "image": 3}])"));
  EXPECT_FALSE(xen_domain_of(R"([{"adapter": "xen", "domain": 7}])"));
  EXPECT_FALSE(xen_domain_of(R"([{"adapter": "qemu-postcopy", "domain": 7}])"));
}

TEST(ArrayScanner, FindsTheEndHoweverTheBytesAreCut) {
  const std::string json = R"( [{"a":"]}\"[","b":[1,{}]}]  )";
  using enum ArrayScanner::Verdict;
  ArrayScanner scanner;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const auto expected = i < json.rfind(']') ? kMore : kComplete;
    EXPECT_EQ(scanner.feed(json.substr(i, 1)), expected) << i;
  }
  EXPECT_EQ(scanner.feed("["), kGarbage) << "a second message";
}

TEST(ArrayScanner, KnowsGarbageAtOnce) {
  for (const std::string_view bytes : {"GET / HTTP/1.1", "{\"a\":1}", "]", "\"[\"", "\x01[", "[]x"})
    EXPECT_EQ(ArrayScanner{}.feed(bytes), ArrayScanner::Verdict::kGarbage) << bytes;
  EXPECT_EQ(ArrayScanner{}.feed(std::string(17, '[')), ArrayScanner::Verdict::kGarbage);
}

/// A socket pair: ours is the guest's end.
class ReceiveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    open_fds_ = count_open_fds();
    std::array<int, 2> fds{};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
    guest_ = UniqueFd{fds[0]};
    auto pending = PendingHandshake::begin(UniqueFd{fds[1]});
    ASSERT_TRUE(pending.has_value()) << pending.error().what;
    pending_.emplace(std::move(*pending));
  }
  void TearDown() override {
    pending_.reset();
    guest_ = {};
    EXPECT_EQ(count_open_fds(), open_fds_) << "descriptors leaked";
  }
  int receive_errno() {
    const auto whole = pending_->receive();
    return whole ? 0 : whole.error().errnum;
  }

  std::size_t open_fds_ = 0;
  UniqueFd guest_;
  std::optional<PendingHandshake> pending_;
};

TEST_F(ReceiveTest, AMessageInPiecesIsWholeOnlyAtItsEnd) {
  const UffdMemory memory{1};
  if (memory.fd() < 0) GTEST_SKIP() << "userfaultfd(2): " << std::strerror(errno);
  ASSERT_TRUE(send_with_fds(guest_.get(), kGood.substr(0, 1), {memory.fd()}));
  for (std::size_t i = 1; i < kGood.size(); ++i) {
    EXPECT_FALSE(pending_->receive().value());
    ASSERT_TRUE(send_with_fds(guest_.get(), kGood.substr(i, 1), {}));
  }
  EXPECT_TRUE(pending_->receive().value());
  const auto guest = std::move(*pending_).finish(kImageBytes);
  ASSERT_TRUE(guest.has_value()) << guest.error().what;
  EXPECT_EQ(guest->peer.pid, getpid());
  EXPECT_EQ(guest->peer.uid, getuid());
  EXPECT_EQ(guest->regions, (std::vector<Region>{{4096, 8192, 0}}));
  EXPECT_TRUE(guest->peer.socket && guest->peer.pidfd && !guest->extra);
  EXPECT_NE(fcntl(guest->uffd.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(fcntl(guest->uffd.get(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_F(ReceiveTest, TheTwoFdFormKeepsTheSecondDescriptorOpen) {
  const UffdMemory memory{1};
  if (memory.fd() < 0) GTEST_SKIP() << "userfaultfd(2): " << std::strerror(errno);
  const UniqueFd extra{open("/dev/null", O_RDONLY | O_CLOEXEC)};
  ASSERT_TRUE(send_with_fds(guest_.get(), kGood, {memory.fd(), extra.get()}));
  ASSERT_TRUE(pending_->receive().value());
  const auto guest = std::move(*pending_).finish(kImageBytes);
  ASSERT_TRUE(guest.has_value()) << guest.error().what;
  EXPECT_TRUE(guest->extra);
}

TEST_F(ReceiveTest, TheFirstDescriptorMustBeAUserfaultfd) {
  const UniqueFd null{open("/dev/null", O_RDONLY | O_CLOEXEC)};
  ASSERT_TRUE(send_with_fds(guest_.get(), kGood, {null.get()}));
  ASSERT_TRUE(pending_->receive().value());
  const auto guest = std::move(*pending_).finish(kImageBytes);
  ASSERT_FALSE(guest.has_value());
  EXPECT_EQ(guest.error().errnum, EBADF);
  EXPECT_THAT(guest.error().what, HasSubstr("/dev/null"));
}

TEST_F(ReceiveTest, AMessageWithoutDescriptorIsRefused) {
  ASSERT_TRUE(send_with_fds(guest_.get(), kGood, {}));
  ASSERT_TRUE(pending_->receive().value());
  EXPECT_EQ(std::move(*pending_).finish(kImageBytes).error().errnum, EPROTO);
}

TEST_F(ReceiveTest, AXenDomainComesWithoutDescriptors) {
  constexpr std::string_view kClone = R"([{"adapter": "xen", "domain": 7, "image": "1f-2"}])";
  ASSERT_TRUE(send_with_fds(guest_.get(), kClone, {}));
  ASSERT_TRUE(pending_->receive().value());
  const auto clone = std::move(*pending_).finish_xen();
  ASSERT_TRUE(clone) << clone.error().what;
  EXPECT_EQ(clone->domain, xen::DomId{7});
  EXPECT_EQ(clone->image, "1f-2");
  EXPECT_EQ(clone->peer.pid, getpid());
}

TEST_F(ReceiveTest, AXenDomainWithADescriptorIsRefused) {
  constexpr std::string_view kClone = R"([{"adapter": "xen", "domain": 7, "image": "1f-2"}])";
  ASSERT_TRUE(send_with_fds(guest_.get(), kClone, {guest_.get()}));
  ASSERT_TRUE(pending_->receive().value());
  EXPECT_EQ(std::move(*pending_).finish_xen().error().errnum, EPROTO);
}

TEST_F(ReceiveTest, ThreeDescriptorsAreTooManyInOneMessageOrInThree) {
  const int fd = guest_.get();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(send_with_fds(fd, kGood.substr(0, 1), {fd}));
  EXPECT_EQ(receive_errno(), EPROTO);
}

TEST_F(ReceiveTest, MoreDescriptorsThanThereIsRoomForAreAllClosed) {
  const std::vector<int> fds(16, guest_.get());
  ASSERT_TRUE(send_with_fds(guest_.get(), kGood, fds));
  EXPECT_EQ(receive_errno(), EPROTO);
}

TEST_F(ReceiveTest, GarbageIsRefusedAtOnce) {
  ASSERT_TRUE(send_with_fds(guest_.get(), "hello", {guest_.get()}));
  EXPECT_EQ(receive_errno(), EPROTO);
}

TEST_F(ReceiveTest, ClosingEarlyIsAnErrorThatSaysHowFarItGot) {
  ASSERT_TRUE(send_with_fds(guest_.get(), kGood.substr(0, 10), {}));
  guest_ = {};
  const auto whole = pending_->receive();
  ASSERT_FALSE(whole.has_value());
  EXPECT_EQ(whole.error().errnum, ECONNRESET);
  EXPECT_THAT(whole.error().what, HasSubstr("after 10 bytes"));
}

TEST_F(ReceiveTest, AMessageWithoutEndIsCutOff) {
  const std::string piece(4096, ' ');
  ASSERT_TRUE(send_with_fds(guest_.get(), "[", {}));
  int errnum = 0;
  for (std::size_t i = 0; i <= kMaxHandshakeBytes / piece.size() && errnum == 0; ++i) {
    ASSERT_TRUE(send_with_fds(guest_.get(), piece, {}));
    errnum = receive_errno();
  }
  EXPECT_EQ(errnum, E2BIG);
}

}  // namespace
}  // namespace snowfabric
