//go:build linux

package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/watchdog"
)

// defaultPatience is how long a stage may take, and PID 1 be silent, before the
// watchdog resets the machine.
const defaultPatience = 2 * time.Minute

// maxPatience is as long as drivers let it be, about 18 hours.
const maxPatience = 0xffff * time.Second

// dogVariable tells stage 2 the file descriptor of the watchdog.
const dogVariable = "KILN_WATCHDOG_FD"

// softDog is the kernel's watchdog for machines without one.
const softDog = "softdog"

// arm starts the watchdog: the machine's if its driver is part of the kernel,
// otherwise the kernel's own. A node without a watchdog starts nonetheless.
func (s *start) arm() {
	patience, err := s.patience()
	if err != nil {
		s.console.Note(err.Error())
	}
	if patience == 0 {
		return
	}
	dog, err := openWatchdog(patience)
	if err != nil {
		s.console.Note(fmt.Sprintf("there is no watchdog: a start that hangs does not end: %v", err))
		return
	}
	s.watch(dog, patience)
}

// patience is what the kernel command line says, or 0 for no watchdog.
func (s *start) patience() (time.Duration, error) {
	v, ok := s.args.Get(argWatchdog)
	switch {
	case !ok:
		return defaultPatience, nil
	case v == "off":
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > int(maxPatience/time.Second) {
		return defaultPatience, fmt.Errorf("kernel argument %s=%s: want 1 to %d seconds or off; it is %d", argWatchdog, v, maxPatience/time.Second, defaultPatience/time.Second)
	}
	return time.Duration(n) * time.Second, nil
}

func openWatchdog(timeout time.Duration) (*watchdog.Device, error) {
	if _, err := os.Stat(watchdog.Path); errors.Is(err, fs.ErrNotExist) {
		kernel, err := release()
		if err != nil {
			return nil, err
		}
		loader, err := modules.Open(modules.Directory("/", kernel), nil)
		if err != nil {
			return nil, err
		}
		if err := loader.Load(softDog, ""); err != nil {
			return nil, err
		}
	}
	return watchdog.Open(watchdog.Path, timeout)
}

func (s *start) watch(dog *watchdog.Device, patience time.Duration) {
	s.dog, s.watchdog = dog, watchdog.Keep(dog, patience)
}

// watched says which watchdog there is.
func (s *start) watched() []console.Field {
	if s.dog == nil {
		return []console.Field{console.F("watchdog", "none")}
	}
	return []console.Field{console.F("watchdog", s.dog.Identity()), console.F("timeout", int(s.dog.Timeout()/time.Second))}
}

// leave returns the environment in which stage 2 finds the watchdog, which goes
// on meanwhile.
func (s *start) leave() []string {
	if s.dog == nil {
		return nil
	}
	fd, err := s.dog.Leave()
	if err != nil {
		s.console.Note(err.Error())
		return nil
	}
	return []string{dogVariable + "=" + strconv.Itoa(fd)}
}

// inherit takes over the watchdog from stage 1.
func (s *start) inherit() {
	v, ok := os.LookupEnv(dogVariable)
	if !ok {
		return
	}
	os.Unsetenv(dogVariable)
	patience, _ := s.patience() // stage 1 has told what is wrong with it
	if patience == 0 {
		return
	}
	fd, err := strconv.Atoi(v)
	if err == nil {
		var dog *watchdog.Device
		if dog, err = watchdog.Inherit(fd); err == nil {
			s.watch(dog, patience)
			return
		}
	}
	s.console.Note(fmt.Sprintf("the watchdog of stage 1 cannot be taken over: %v", err))
}
