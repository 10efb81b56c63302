// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/profile.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include <gmock/gmock.h>

#include "fabric/wire.hpp"
#include "pmd-config/eal_args.hpp"

namespace snowfabric {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

/// A directory of user profiles, first in the search path while a test runs.
class ProfileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "profile_test.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    setenv("SNOWFABRIC_PROFILE_DIR", dir_.c_str(), 1);
    setenv("XDG_CONFIG_HOME", (dir_ / "none").c_str(), 1);
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string write(const std::string& file, const std::string& text) {
    std::ofstream{dir_ / file} << text;
    return dir_ / file;
  }
  Error error_of(const std::string& text) {
    const auto profile = load_profile(write("wrong.toml", text));
    return profile ? Error{0, "loaded"} : profile.error();
  }

  fs::path dir_;
};

TEST_F(ProfileTest, EveryShippedProfileLoadsAndIsListed) {
  const auto list = list_profiles();
  for (const auto* name : {"net_ring", "net_memif", "net_af_packet", "net_af_xdp", "net_tap",
                           "mlx5", "ice", "i40e", "ixgbe", "virtio"}) {
    const auto profile = load_profile(name);
    ASSERT_TRUE(profile) << profile.error().what;
    EXPECT_EQ(profile->name, name);
    EXPECT_FALSE(profile->description.empty());
    EXPECT_FALSE(profile->cannot.empty());
    EXPECT_FALSE(profile->eal_args.empty());
    EXPECT_TRUE(std::ranges::count(list, name, &ProfileInfo::name) == 1) << name;
  }
}

TEST_F(ProfileTest, DevicesThatCannotCarryAPageInOneFrameSaySoByTheirMtu) {
  for (const auto* name : {"net_af_xdp", "net_tap"})
    EXPECT_GT(wire::fragments_for_mtu(load_profile(name)->max_mtu), 1U) << name;
  for (const auto* name : {"net_ring", "net_memif", "net_af_packet", "mlx5", "ice", "i40e"})
    EXPECT_EQ(wire::fragments_for_mtu(load_profile(name)->max_mtu), 1U) << name;
}

TEST_F(ProfileTest, BaseGivesEveryKeyThatIsNotOverridden) {
  const std::string file = write("mine.toml",
                                 "base = \"net_af_packet\"\n"
                                 "description = \"mine\"\n"
                                 "nb_rxd = 512\n"
                                 "idle = \"yield\"\n"
                                 "rate_max_gbps = 7\n");
  for (const std::string& name : {std::string{"mine"}, file}) {
    const auto mine = load_profile(name);
    const auto base = load_profile("net_af_packet");
    ASSERT_TRUE(mine) << mine.error().what;
    EXPECT_EQ(mine->name, "mine");
    EXPECT_EQ(mine->description, "mine");
    EXPECT_EQ(mine->nb_rxd, 512);
    EXPECT_EQ(mine->idle.strategy, IdleStrategy::kYield);
    EXPECT_EQ(mine->rate_max_gbps, 7.0);  // a whole number is a number
    EXPECT_EQ(mine->nb_txd, base->nb_txd);
    EXPECT_EQ(mine->eal_args, base->eal_args);
    EXPECT_EQ(mine->mtu_by, MtuBy::kKernel);
    EXPECT_EQ(mine->cannot, base->cannot);
  }
}

TEST_F(ProfileTest, OnlyDevicesWhoseEndTakesCapabilitiesKeepThem) {
  for (const auto* name : {"net_ring", "net_memif", "net_af_packet", "ice", "virtio"})
    EXPECT_EQ(load_profile(name)->capabilities, 0U) << name;
  EXPECT_EQ(to_string(load_profile("net_af_xdp")->capabilities), "net_admin, net_raw, bpf");
  const std::string none = write("none.toml", "base = \"net_tap\"\ncapabilities = []\n");
  EXPECT_EQ(load_profile(none)->capabilities, 0U);
}

TEST_F(ProfileTest, AUserProfileMayOverrideTheShippedOneOfItsName) {
  write("net_af_packet.toml", "base = \"net_af_packet\"\nnb_rxd = 64\n");
  const auto profile = load_profile("net_af_packet");
  ASSERT_TRUE(profile) << profile.error().what;
  EXPECT_EQ(profile->nb_rxd, 64);
  EXPECT_EQ(profile->file, dir_ / "net_af_packet.toml");
  EXPECT_EQ(profile->mtu_by, MtuBy::kKernel);
}

TEST_F(ProfileTest, BaseAsAPathIsRelativeToTheFileThatSaysIt) {
  write("grand.toml", "base = \"net_tap\"\nnb_rxd = 64\nnb_txd = 64\n");
  write("parent.toml", "base = \"./grand.toml\"\nnb_rxd = 128\n");
  const auto profile = load_profile(write("child.toml", "base = \"parent\"\nnb_mbufs = 1000\n"));
  ASSERT_TRUE(profile) << profile.error().what;
  EXPECT_EQ(profile->nb_rxd, 128);
  EXPECT_EQ(profile->nb_txd, 64);
  EXPECT_EQ(profile->nb_mbufs, 1000U);
}

TEST_F(ProfileTest, MistakesNameTheFileTheLineAndTheKey) {
  const auto is_at = [&](int line, const char* what) {
    return AllOf(StartsWith((dir_ / "wrong.toml").string() + ":" + std::to_string(line) + ": "),
                 HasSubstr(what));
  };
  EXPECT_THAT(error_of("\nnb_rdx = 5\n").what, is_at(2, "nb_rdx: unknown key"));
  EXPECT_THAT(error_of("nb_rxd = \"many\"\n").what, is_at(1, "nb_rxd: must be a whole number"));
  EXPECT_THAT(error_of("\n\nnb_rxd = 1\n").what, is_at(3, "nb_rxd: 1 is not within 32..32768"));
  EXPECT_THAT(error_of("nb_rxd = 70000\n").what, is_at(1, "70000 is not within"));
  EXPECT_THAT(error_of("zero_copy = 1\n").what, is_at(1, "zero_copy: must be true or false"));
  EXPECT_THAT(error_of("mtu_by = \"me\"\n").what, is_at(1, "must be one of kernel, ethdev, none"));
  EXPECT_THAT(error_of("idle = 3\n").what, is_at(1, "must be one of busy, yield, backoff"));
  EXPECT_THAT(error_of("cannot = [1]\n").what, is_at(1, "must be an array of strings"));
  EXPECT_THAT(error_of("capabilities = [\"sys_admin\"]\n").what, is_at(1, "must be of kill, net_"));
  EXPECT_THAT(error_of("description = 1\n").what, is_at(1, "must be a string"));
  EXPECT_THAT(error_of("rate_max_gbps = -1.0\n").what, is_at(1, "not within 0.001..1600"));
  EXPECT_THAT(error_of("rate_max_gbps = nan\n").what, is_at(1, "not within 0.001..1600"));
  EXPECT_THAT(error_of("base = 4\n").what, is_at(1, "base: must be a string"));
  EXPECT_THAT(error_of("nb_rxd = 64\nnb_txd =\n").what, is_at(2, ""));  // TOML's own complaint
  EXPECT_EQ(error_of("nb_rxd = 1\n").errnum, EINVAL);
}

TEST_F(ProfileTest, KeysThatContradictEachOtherAreRefused) {
  EXPECT_THAT(error_of("mtu = 2000\nmax_mtu = 1500\n").what, HasSubstr("exceeds max_mtu"));
  EXPECT_THAT(error_of("mtu = 0\n").what, HasSubstr("mtu_by = \"kernel\""));
  EXPECT_THAT(error_of("mtu = 500\n").what, HasSubstr("too small for a page"));
  EXPECT_THAT(error_of("nb_mbufs = 128\n").what, HasSubstr("less than nb_rxd + nb_txd + 64"));
  EXPECT_THAT(error_of("rate_initial_gbps = 9\nrate_max_gbps = 3\n").what,
              HasSubstr("exceeds rate_max_gbps"));
}

TEST_F(ProfileTest, CircularBasesAndMissingFilesEndInAnError) {
  write("a.toml", "base = \"./b.toml\"\n");
  write("b.toml", "base = \"./a.toml\"\n");
  EXPECT_EQ(load_profile("a").error().errnum, EINVAL);
  EXPECT_THAT(load_profile("a").error().what, HasSubstr("leads back"));
  write("self.toml", "base = \"self\"\n");  // there is no shipped one behind it
  EXPECT_EQ(load_profile("self").error().errnum, ENOENT);
  EXPECT_EQ(load_profile("no_such").error().errnum, ENOENT);
  EXPECT_EQ(load_profile("./no_such.toml").error().errnum, ENOENT);
  EXPECT_THAT(load_profile("no_such").error().what, HasSubstr("net_ring"));  // which there are
}

TEST_F(ProfileTest, AnMbufHoldsTheLongestFrameOfItsMtu) {
  for (const auto* name : {"net_ring", "net_af_packet", "net_tap", "mlx5"}) {
    const auto profile = load_profile(name).value();
    for (const unsigned mtu : {1500U, 4200U, 9000U})
      EXPECT_GE(mbuf_room_bytes(profile, mtu), max_frame_bytes(mtu) + 128) << name << mtu;
  }
  // net_af_packet: room >= framesz - 32 + 128, or its queue set-up fails
  EXPECT_GE(mbuf_room_bytes(load_profile("net_af_packet").value(), 9000), 8192 - 32 + 128);
  EXPECT_EQ(mbuf_room_bytes(load_profile("net_af_xdp").value(), 1500), 3500);
}

EalConfig config_for(const char* profile) {
  EalConfig config;
  config.program = "prog";
  config.profile = load_profile(profile).value();
  config.iface = "veth7";
  config.mtu = 9000;
  return config;
}

TEST_F(ProfileTest, EalArgumentsCarryTheDeviceAndAPrefixOfTheProcess) {
  const auto args = eal_args(config_for("net_af_packet")).value();
  EXPECT_EQ(args.front(), "prog");
  EXPECT_THAT(args, Contains("--vdev=net_af_packet0,iface=veth7,framesz=16384,blocksz=16384,"
                             "framecnt=1024"));
  EXPECT_THAT(args, Contains("--file-prefix=snowfabric-" + std::to_string(getpid())));
  EXPECT_THAT(args, Contains("--no-huge"));
  EXPECT_THAT(args, Contains("--no-pci"));
  EXPECT_THAT(args, Not(Contains("--no-telemetry")));
  auto small = config_for("net_af_packet");
  small.mtu = 1500;
  EXPECT_THAT(eal_args(small).value(), Contains(HasSubstr("framesz=2048,blocksz=4096")));
}

TEST_F(ProfileTest, RealDevicesGetHugepagesAndTheirPciAddress) {
  auto config = config_for("mlx5");
  config.iface = "0000:03:00.0";
  const auto args = eal_args(config).value();
  EXPECT_THAT(args, Contains("--allow=0000:03:00.0"));
  EXPECT_THAT(args, Contains("--in-memory"));
  EXPECT_THAT(args, Not(Contains("--no-huge")));
  EXPECT_THAT(args, Not(Contains("--no-pci")));
}

TEST_F(ProfileTest, TheUsersEalArgumentsReplaceOurs) {
  const auto with = [](std::vector<std::string> extra) {
    auto config = config_for("net_af_packet");
    config.extra_args = std::move(extra);
    return eal_args(config).value();
  };
  EXPECT_THAT(with({"--file-prefix=mine"}), Not(Contains(HasSubstr("prefix=snow"))));
  EXPECT_THAT(with({"--file-prefix", "mine"}), Not(Contains(HasSubstr("prefix=snow"))));
  for (const auto* cores : {"-l", "--lcores=0", "-c"})
    EXPECT_THAT(with({cores, "1"}), Not(Contains(StartsWith("--lcores=0@"))));
  const auto vdev = with({"--vdev=net_null0"});
  EXPECT_THAT(vdev, Not(Contains(HasSubstr("af_packet"))));
  EXPECT_THAT(vdev, Contains("--no-pci"));
  EXPECT_THAT(with({"-a", "0000:03:00.0"}), Not(Contains("--no-pci")));
  EXPECT_THAT(with({"--log-level=debug"}), Not(Contains("--log-level=error")));
  const auto memory = with({"-m128"});
  EXPECT_THAT(memory, Contains("--no-huge"));
  EXPECT_THAT(memory, Not(Contains("-m")));
  const auto huge = with({"--in-memory"});
  EXPECT_THAT(huge, Not(Contains("--no-huge")));
  EXPECT_THAT(huge, Not(Contains("-m")));
  EXPECT_EQ(huge.back(), "--in-memory");
}

TEST_F(ProfileTest, PlaceholdersWithoutAValueAreRefused) {
  auto config = config_for("net_af_packet");
  config.iface = "";
  EXPECT_THAT(eal_args(config).error().what, HasSubstr("--device"));
  config.iface = "veth0,qpairs=9";
  EXPECT_THAT(eal_args(config).error().what, HasSubstr("comma"));
  config.iface = "veth0";
  for (const auto* arg : {"--vdev={nonsense}", "--vdev={iface"}) {
    config.profile.eal_args = {arg};
    const auto args = eal_args(config);
    ASSERT_FALSE(args);
    EXPECT_EQ(args.error().errnum, EINVAL);
    EXPECT_THAT(args.error().what, HasSubstr("eal_args"));
  }
}

TEST_F(ProfileTest, BusyPollingPinsAndTheOthersFloat) {
  EXPECT_THAT(default_lcores(IdleStrategy::kBusy), Not(HasSubstr(",")));
  EXPECT_THAT(default_lcores(IdleStrategy::kBackoff), AllOf(StartsWith("0@("), EndsWith(")")));
}

TEST_F(ProfileTest, MemoryWithoutHugepagesCoversThePool) {
  const auto profile = load_profile("net_af_packet").value();
  EXPECT_GE(no_huge_mb(profile, 9000), profile.nb_mbufs * 8480ULL / 1'000'000 + 32);
  EXPECT_LT(no_huge_mb(profile, 1500), no_huge_mb(profile, 9000));
}

}  // namespace
}  // namespace snowfabric
