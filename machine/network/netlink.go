//go:build linux

package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// protocol marks the routes that this package has made (rtm_protocol). Those
// that the kernel, the containers' networks or people make have others.
const protocol netlink.RouteProtocol = 75

// dumps is how often a list is asked for again that changed while it was read.
const dumps = 5

// rtnetlink is the kernel of the network namespace that it was opened in.
type rtnetlink struct{ h *netlink.Handle }

func openNetlink() (*rtnetlink, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	// The kernel answers at once; a driver that hangs must not hang the node.
	if err := h.SetSocketTimeout(30 * time.Second); err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &rtnetlink{h}, nil
}

func (n *rtnetlink) close() { n.h.Close() }

// dump calls f until its list did not change while it was read.
func dump[T any](what string, f func() ([]T, error)) ([]T, error) {
	for i := 0; ; i++ {
		list, err := f()
		if err == nil || i == dumps || !errors.Is(err, netlink.ErrDumpInterrupted) {
			if err != nil {
				err = fmt.Errorf("netlink: list %s: %w", what, err)
			}
			return list, err
		}
	}
}

func (n *rtnetlink) links() ([]link, error) {
	list, err := dump("links", n.h.LinkList)
	if err != nil {
		return nil, err
	}
	var links []link
	for _, nl := range list {
		a := nl.Attrs()
		l := link{index: a.Index, name: a.Name, ethernet: a.EncapType == "ether", mac: a.HardwareAddr, permanent: a.PermHWAddr, mtu: a.MTU,
			up: a.RawFlags&unix.IFF_UP != 0, carrier: a.RawFlags&unix.IFF_LOWER_UP != 0, master: a.MasterIndex, device: a.ParentDev}
		if t := nl.Type(); t != "device" {
			l.kind.typ = t
		}
		switch v := nl.(type) {
		case *netlink.Vlan:
			l.kind.parent, l.kind.vlan, l.kind.ad = a.ParentIndex, v.VlanId, v.VlanProtocol == netlink.VLAN_PROTOCOL_8021AD
		case *netlink.Bridge:
			stp, _ := os.ReadFile(stpFile(a.Name))
			l.kind.stp = strings.TrimSpace(string(stp)) != "0" && len(stp) > 0
		case *netlink.Bond:
			l.primary = max(v.Primary, 0)
			l.kind.bond = bondParams{mode: int(v.Mode), miimon: v.Miimon, up: v.UpDelay, down: v.DownDelay, hash: int(v.XmitHashPolicy),
				minLinks: v.MinLinks, lacp: int(v.LacpRate), ad: int(v.AdSelect)}.clean()
		}
		links = append(links, l)
	}
	return links, nil
}

func (n *rtnetlink) addresses() ([]address, error) {
	list, err := dump("addresses", func() ([]netlink.Addr, error) { return n.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var addresses []address
	for _, a := range list {
		if p, ok := prefix(a.IPNet); ok {
			addresses = append(addresses, address{index: a.LinkIndex, prefix: p, permanent: a.Flags&unix.IFA_F_PERMANENT != 0,
				alone:     a.Flags&unix.IFA_F_NOPREFIXROUTE != 0,
				tentative: a.Flags&unix.IFA_F_TENTATIVE != 0, duplicate: a.Flags&unix.IFA_F_DADFAILED != 0})
		}
	}
	return addresses, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok && a.BitLen() == size
}

func (n *rtnetlink) routes() ([]route, error) {
	var routes []route
	for family, all := range map[int]netip.Prefix{
		netlink.FAMILY_V4: netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netlink.FAMILY_V6: netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	} {
		list, err := dump("routes", func() ([]netlink.Route, error) { return n.h.RouteList(nil, family) })
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			to, ok := prefix(r.Dst)
			if !ok {
				to = all
			}
			via, _ := netip.AddrFromSlice(r.Gw)
			source, _ := netip.AddrFromSlice(r.Src)
			routes = append(routes, route{index: r.LinkIndex, ours: r.Protocol == protocol, ra: r.Protocol == unix.RTPROT_RA,
				Route: Route{To: to, Via: via.Unmap(), Source: source.Unmap(), Metric: uint32(r.Priority), MTU: r.MTU}})
		}
	}
	return routes, nil
}

func (n *rtnetlink) create(name string, k kind) error {
	a := netlink.NewLinkAttrs()
	a.Name = name
	var l netlink.Link
	switch k.typ {
	case "bond":
		b := netlink.NewLinkBond(a)
		b.Mode, b.Miimon, b.UpDelay, b.DownDelay = netlink.BondMode(k.bond.mode), k.bond.miimon, k.bond.up, k.bond.down
		b.XmitHashPolicy = netlink.BondXmitHashPolicy(k.bond.hash)
		if b.Mode == netlink.BOND_MODE_802_3AD {
			b.MinLinks, b.LacpRate, b.AdSelect = k.bond.minLinks, netlink.BondLacpRate(k.bond.lacp), netlink.BondAdSelect(k.bond.ad)
		}
		l = b
	case "vlan":
		a.ParentIndex = k.parent
		v := &netlink.Vlan{LinkAttrs: a, VlanId: k.vlan, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
		if k.ad {
			v.VlanProtocol = netlink.VLAN_PROTOCOL_8021AD
		}
		l = v
	case "bridge":
		l = &netlink.Bridge{LinkAttrs: a}
	case "dummy":
		l = &netlink.Dummy{LinkAttrs: a}
	default:
		return fmt.Errorf("links of kind %q are not made", k.typ)
	}
	err := n.h.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("%w; the kernel has no module for links of kind %s", err, k.typ)
	}
	return err
}

// byIndex is a link of which no more than the index need be known.
func byIndex(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func (n *rtnetlink) remove(index int) error { return n.h.LinkDel(byIndex(index)) }
func (n *rtnetlink) rename(index int, name string) error {
	return n.h.LinkSetName(byIndex(index), name)
}
func (n *rtnetlink) setMTU(index, mtu int) error { return n.h.LinkSetMTU(byIndex(index), mtu) }

func (n *rtnetlink) setMAC(index int, mac net.HardwareAddr) error {
	return n.h.LinkSetHardwareAddr(byIndex(index), mac)
}

func (n *rtnetlink) setMaster(index, master int) error {
	return n.h.LinkSetMasterByIndex(byIndex(index), master)
}

func (n *rtnetlink) setUp(index int, up bool) error {
	if up {
		return n.h.LinkSetUp(byIndex(index))
	}
	return n.h.LinkSetDown(byIndex(index))
}

func (n *rtnetlink) setPrimary(bond link, member int) error {
	b := netlink.NewLinkBond(netlink.LinkAttrs{Index: bond.index, Name: bond.name, TxQLen: -1})
	b.Primary = member
	return n.h.LinkModify(b)
}

func (a address) netlink() *netlink.Addr {
	p := a.prefix
	l := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, LinkIndex: a.index}
	if a.alone {
		l.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	return l
}

func (n *rtnetlink) addAddress(a address) error    { return n.h.AddrAdd(byIndex(a.index), a.netlink()) }
func (n *rtnetlink) removeAddress(a address) error { return n.h.AddrDel(byIndex(a.index), a.netlink()) }

func (r route) netlink() *netlink.Route {
	to := r.To
	l := &netlink.Route{LinkIndex: r.index, Protocol: protocol, Priority: int(r.Metric), MTU: r.MTU, Table: unix.RT_TABLE_MAIN,
		Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}}
	if r.ra {
		l.Protocol = unix.RTPROT_RA
	}
	if r.Via.IsValid() {
		l.Gw = r.Via.AsSlice()
	} else if to.Addr().Is4() {
		l.Scope = netlink.SCOPE_LINK
	}
	if r.Source.IsValid() {
		l.Src = r.Source.AsSlice()
	}
	if r.OnLink {
		l.Flags = int(netlink.FLAG_ONLINK)
	}
	return l
}

func (n *rtnetlink) addRoute(r route) error    { return n.h.RouteAdd(r.netlink()) }
func (n *rtnetlink) removeRoute(r route) error { return n.h.RouteDel(r.netlink()) }

const (
	sysctlDir = "/proc/sys/net"
	sysDir    = "/sys/class/net"
)

func stpFile(name string) string { return filepath.Join(sysDir, name, "bridge/stp_state") }

// sysctl implements kernel. Spanning tree has no variable, but a file.
func (n *rtnetlink) sysctl(name, value string) (bool, error) {
	file := filepath.Join(sysctlDir, name)
	if strings.HasPrefix(name, sysDir) {
		file = name
	}
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || strings.TrimSpace(string(old)) == value {
		return false, err
	}
	return true, os.WriteFile(file, []byte(value), 0)
}

func (n *rtnetlink) driver(name string) string {
	to, err := os.Readlink(filepath.Join(sysDir, name, "device/driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// carriers returns how often a link has got a carrier, for one may have gone and
// come back between two passes.
func (n *rtnetlink) carriers(name string) string {
	count, err := os.ReadFile(filepath.Join(sysDir, name, "carrier_up_count"))
	if err != nil {
		return ""
	}
	return string(count)
}

// watch sends on changed, which has room for one, whenever links, addresses or
// routes change, until the context ends.
func watch(ctx context.Context, changed chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("netlink: %w", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			// What has changed is read anew, and so it does no harm when there
			// were too many messages (ENOBUFS).
			if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}
