package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Modes of bonds, in the kernel's numbers.
const (
	modeXOR  = 2
	modeLACP = 4
	modeTLB  = 5
)

// bondParams are in the kernel's numbers; times in milliseconds. Those that the
// mode does not have are 0.
type bondParams struct {
	mode, miimon, up, down, hash, minLinks, lacp, ad int
}

// clean takes out what the mode does not have.
func (p bondParams) clean() bondParams {
	if p.mode != modeLACP {
		p.minLinks, p.lacp, p.ad = 0, 0, 0
	}
	if p.mode != modeLACP && p.mode != modeXOR && p.mode != modeTLB {
		p.hash = 0
	}
	return p
}

// params returns b in the kernel's numbers.
func (b *Bond) params() (bondParams, error) {
	find := func(what, value, empty string, names ...string) (int, error) {
		if value == "" {
			value = empty
		}
		if i := slices.Index(names, value); i >= 0 {
			return i, nil
		}
		return 0, fmt.Errorf("bond %s %q, where one of %s is wanted", what, value, strings.Join(names, ", "))
	}
	mode, err := find("mode", b.Mode, "active-backup", "balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb")
	hash, err2 := find("transmit hash policy", b.TransmitHash, "layer2", "layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")
	lacp, err3 := find("LACP rate", b.LACPRate, "slow", "slow", "fast")
	ad, err4 := find("aggregator selection", b.Select, "stable", "stable", "bandwidth", "count")
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return bondParams{}, err
	}
	ms := func(d time.Duration) int { return int(d / time.Millisecond) }
	p := bondParams{mode: mode, miimon: ms(b.MIIMonitor), up: ms(b.UpDelay), down: ms(b.DownDelay), hash: hash, minLinks: b.MinLinks, lacp: lacp, ad: ad}
	if p.miimon <= 0 {
		p.miimon = 100
	}
	// The kernel rounds down to multiples of miimon.
	p.up, p.down = p.up/p.miimon*p.miimon, p.down/p.miimon*p.miimon
	return p.clean(), nil
}
