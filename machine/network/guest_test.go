//go:build linux

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/timesync"
)

// TestMain is the init of the machine that TestMachine starts, as well.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		if err := inGuest(); err != nil {
			fmt.Printf("guest: failed: %v\n", err)
		}
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.Exit(m.Run())
}

// moduleDir has the modules for the machine, in the order to load them in.
const moduleDir = "/modules"

// inGuest prints "guest: NAME: RESULT" for every case. The host knows what the
// results have to be.
func inGuest() error {
	for _, m := range []mount.FileSystem{{Source: "proc", Target: "/proc", Type: "proc"}, {Source: "sysfs", Target: "/sys", Type: "sysfs"}, {Source: "dev", Target: "/dev", Type: "devtmpfs"}} {
		if err := mount.Mount(m); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(moduleDir + "/*")
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := load(file); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	var changes []string
	n, err := Start(Options{Log: func(s string) { changes = append(changes, s) }})
	if err != nil {
		return err
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := n.Apply(ctx, Spec{}); err != nil {
		return err
	}
	s, err := await(ctx, n, func(s Status) bool { return len(s.Addresses()) > 0 && s.Addresses()[0].Is4() })
	if err != nil {
		return err
	}
	report("DHCP", describe(s))

	mac, err := net.ParseMAC("52:54:00:12:34:56")
	if err != nil {
		return err
	}
	spec := Spec{Links: []Link{
		{Name: "lan0", Match: &Match{MAC: mac, Driver: "virtio_*", Path: "virtio*"}, DHCP4: true, DHCP: DHCP{UseDNS: true}},
		{Name: "bond0.5", VLAN: &VLAN{Link: "bond0", ID: 5}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")}},
		{Name: "outer", VLAN: &VLAN{Link: "bond0", ID: 7, Provider: true}},
		{Name: "bond0", MTU: 9000, Bond: &Bond{Members: []string{"dummy0", "dummy1"}, Mode: "802.3ad", LACPRate: "fast", MIIMonitor: 50 * time.Millisecond,
			UpDelay: 100 * time.Millisecond, TransmitHash: "layer3+4", MinLinks: 1, Select: "bandwidth"}},
		{Name: "bond1", Bond: &Bond{Members: []string{"dummy2"}, Primary: "dummy2"}},
		{Name: "dummy0", Dummy: true}, {Name: "dummy1", Dummy: true}, {Name: "dummy2", Dummy: true},
	}}
	if err := n.Apply(ctx, spec); err != nil {
		return err
	}
	if s, err = await(ctx, n, func(s Status) bool { return s.Ready && len(s.Addresses()) == 2 && s.Addresses()[1].Is4() }); err != nil {
		return err
	}
	report("Spec", describe(s))
	for _, file := range []string{"/proc/net/bonding/bond0", "/proc/net/bonding/bond1", "/proc/net/vlan/config"} {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		report(filepath.Base(file), summarize(string(text)))
	}
	changes = nil
	if err := n.Apply(ctx, spec); err != nil {
		return err
	}
	report("again", strings.Join(changes, "; "))
	return clock()
}

// clock sets the machine's clocks.
func clock() error {
	c := timesync.System{RTC: timesync.RTC}
	want := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := c.Step(want.Sub(c.Now())); err != nil {
		return err
	}
	report("stepped", c.Now().Sub(want).Abs() < time.Second)
	if err := c.Slew(10*time.Millisecond, time.Minute, time.Millisecond); err != nil {
		return err
	}
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		return err
	}
	report("slewing", tx.Offset > 0 && tx.Status&unix.STA_UNSYNC == 0)
	if err := c.Save(); err != nil {
		return err
	}
	date, err := os.ReadFile("/sys/class/rtc/rtc0/date")
	report("battery", strings.TrimSpace(string(date)))
	return err
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func report(name string, result any) { fmt.Printf("guest: %s: %v\n", name, result) }

// await waits for a Status.
func await(ctx context.Context, n *Network, good func(Status) bool) (Status, error) {
	for {
		s := n.Status()
		if good(s) {
			return s, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return s, fmt.Errorf("%w: %+v", ctx.Err(), s)
		}
	}
}

// describe returns the IPv4 part of a Status on one line.
func describe(s Status) string {
	var list []string
	for _, l := range s.Links {
		for _, a := range l.Addresses {
			if a.Prefix.Addr().Is4() {
				list = append(list, fmt.Sprintf("%s %v mtu %d", l.Name, a.Prefix, l.MTU))
			}
		}
	}
	for _, d := range s.Defaults {
		if d.Via.Is4() {
			list = append(list, fmt.Sprintf("default via %v dev %s metric %d", d.Via, d.Link, d.Metric))
		}
	}
	return fmt.Sprintf("%s; faults %v", strings.Join(list, "; "), s.Faults)
}

// summarize returns what the kernel says about a bond, or about VLANs, on one
// line.
func summarize(text string) string {
	var list []string
	for line := range strings.Lines(text) {
		line = strings.Join(strings.Fields(line), " ")
		for _, prefix := range []string{"Bonding Mode:", "Transmit Hash", "MII Polling", "Up Delay", "LACP rate", "Min links", "Aggregator selection", "Slave Interface", "Primary Slave", "bond0.5", "outer"} {
			if strings.HasPrefix(line, prefix) {
				list = append(list, line)
			}
		}
	}
	return strings.Join(list, "; ")
}
