//go:build linux

package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/installer/tool"
	"github.com/kilnhq/kiln/machine/medium"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/reaper"
)

// Where the medium and the program on it are mounted.
const (
	mediumDir  = runDir + "/medium"
	programDir = runDir + "/program"
)

// installation is what the kernel arguments ask to install.
type installation struct {
	medium   string // GUID of the ISO image
	disk     string // path, or selector
	platform string // "" is the ISO image's
	force    bool
	then     power.Action
}

func installationOf(args cmdline.Args) (*installation, error) {
	disk, _ := args.Get(argInstallDisk)
	in := &installation{disk: strings.TrimSpace(disk), then: power.Off}
	if in.disk == "" {
		return nil, fmt.Errorf("kernel argument %s is empty; want a device, as /dev/sda, or an expression that matches one disk, as \"size > 10GB && !removable\"", argInstallDisk)
	}
	if in.medium, _ = args.Get(argMedium); in.medium == "" {
		return nil, fmt.Errorf("kernel argument %s: this image has nothing to install from, %s is missing; start the machine from an ISO image", argInstallDisk, argMedium)
	}
	in.platform, _ = args.Get(argInstallPlatform)
	if v, ok := args.Get(argInstallForce); ok {
		var err error
		if in.force, err = strconv.ParseBool(v); v != "" && err != nil {
			return nil, fmt.Errorf("kernel argument %s=%s: want it without a value, or true or false", argInstallForce, v)
		}
		in.force = in.force || v == ""
	}
	switch v, ok := args.Get(argInstallThen); {
	case !ok || v == power.Off.String():
	case v == power.Restart.String():
		in.then = power.Restart
	default:
		return nil, fmt.Errorf("kernel argument %s=%s: want %v or %v", argInstallThen, v, power.Off, power.Restart)
	}
	return in, nil
}

// command is what kiln is started with.
func (in *installation) command() []string {
	args := []string{"install", "--progress", "json", "--source", mediumDir + "/" + medium.Source}
	if strings.HasPrefix(in.disk, "/") {
		args = append(args, "--disk", in.disk)
	} else {
		// Words of the kernel command line have no double quotes in them, and GRUB
		// puts a backslash before single ones.
		args = append(args, "--disk-selector", strings.ReplaceAll(in.disk, "`", "'"))
	}
	if in.platform != "" {
		args = append(args, "--platform", in.platform)
	}
	if in.force {
		args = append(args, "--force")
	}
	return args
}

// install installs onto a disk, and then turns the machine off or restarts it.
// What fails stays on the console, until somebody turns the machine off: a restart
// would only fail again.
func (s *start) install(devices *devices, children *reaper.Reaper, requests chan<- power.Request) error {
	s.begin("install")
	then, err := s.installAs(devices, children)
	if err != nil {
		s.console.Failed("install", err)
	} else {
		requests <- power.Request{Action: then, Reason: "installed"}
	}
	return devices.watch(func() {})
}

// installAs does what the kernel arguments say, and returns what is to follow.
func (s *start) installAs(devices *devices, children *reaper.Reaper) (power.Action, error) {
	in, err := installationOf(s.args)
	if err != nil {
		return 0, err
	}
	from, err := devices.waitForMedium(in.medium)
	if err != nil {
		return 0, err
	}
	if err := openMedium(devices.loader, from); err != nil {
		return 0, err
	}
	s.console.Note(fmt.Sprintf("installing onto %s, from %s", in.disk, from))
	disk, err := s.kiln(children, in.command())
	if err != nil {
		return 0, err
	}
	s.done(console.F("disk", disk), console.F("from", from), console.F("then", in.then))
	return in.then, nil
}

// waitForMedium returns the kernel's name of the device with the medium.
func (d *devices) waitForMedium(id string) (string, error) {
	deadline := time.Now().Add(patienceNamed)
	for {
		name, err := medium.Find("/sys", "/dev", id)
		left := time.Until(deadline)
		if !errors.Is(err, medium.ErrNotFound) || left <= 0 {
			return name, err
		}
		d.watchdog.Renew()
		// A CD drive takes its time after its driver is there, without any event.
		if _, err := d.next(min(left, time.Second)); err != nil {
			return "", err
		}
		if err := d.settle(); err != nil {
			return "", err
		}
	}
}

// openMedium mounts the medium, and the program on it.
func openMedium(loader *modules.Loader, name string) error {
	if !mount.Known("iso9660") {
		if err := loader.Load("isofs", ""); err != nil {
			return err
		}
	}
	for _, dir := range []string{mediumDir, programDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	err := mount.Mount(mount.FileSystem{Source: "/dev/" + name, Target: mediumDir, Type: "iso9660", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV})
	if err != nil {
		return err
	}
	return mount.Image(mediumDir+"/"+medium.Program, programDir)
}

// kiln runs the program of the medium, and returns the path of the disk. It tells
// the console how far it is, at every tenth.
func (s *start) kiln(children *reaper.Reaper, args []string) (string, error) {
	type result struct {
		out string
		err error
	}
	ended := make(chan result, 1)
	go func() {
		out, err := tool.Run(context.Background(), children, programDir+"/"+medium.Tool, args, "/tmp", s.tenths())
		ended <- result{out, err}
	}()
	// As long as the program lives the machine does: disks may take minutes to
	// discard what they hold.
	alive := time.NewTicker(time.Second / 4)
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			s.watchdog.Renew()
		case r := <-ended:
			if r.err != nil {
				return "", errors.New(byArguments(r.err.Error()))
			}
			disk, _, _ := strings.Cut(r.out, ": ")
			return disk, nil
		}
	}
}

// byArguments says with kernel arguments what a message of kiln says with flags.
func byArguments(message string) string {
	return strings.NewReplacer("--disk-selector", argInstallDisk, "--disk", argInstallDisk, "--platform", argInstallPlatform, "--force", argInstallForce).Replace(message)
}

// tenths returns a function that tells the console of what is worth telling.
func (s *start) tenths() func(tool.Event) {
	tenth := int64(0)
	return func(e tool.Event) {
		switch {
		case e.Progress():
			if n := e.Done * 10 / e.Total; n > tenth {
				tenth = n
				s.console.Note(fmt.Sprintf("%s: %d %%", e.Step, n*10))
			}
		case e.Warning():
			s.console.Note(e.Event)
		}
	}
}
