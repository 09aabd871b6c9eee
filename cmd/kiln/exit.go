package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/install"
	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/kernel/kconfig"
	"github.com/kilnhq/kiln/kernel/kit"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/sign"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/slots"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs"
)

// Exit codes. They are documented in the README and in 'kiln help exit-codes'.
const (
	exitOK          = 0
	exitFailed      = 1   // anything not below
	exitUsage       = 2   // wrong flags or arguments, unknown profile, invalid YAML
	exitNotFound    = 3   // an input is not there
	exitRefused     = 4   // inputs are damaged or do not fit together
	exitOutput      = 5   // the output cannot be written
	exitInterrupted = 130 // SIGINT or SIGTERM
)

const exitCodesHelp = `  0    success
  1    failed for a reason not below
  2    wrong flags or arguments, unknown profile, invalid YAML
  3    an input does not exist
  4    inputs are damaged or do not fit together: the image would not boot
  5    the output cannot be written, for example because the disk is full
  130  interrupted: files that were not finished are removed; an unfinished
       'kiln install' leaves a disk that does not boot, and says so
`

// usageError marks errors of the command line itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// outputError marks errors of writing what a command makes.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// writing returns an error of making output: marked, if it is about files.
func writing(output string, err error) error {
	var path *fs.PathError
	var link *os.LinkError
	if errors.As(err, &path) || errors.As(err, &link) {
		return outputError{fmt.Errorf("cannot write %s: %w", output, err)}
	}
	return err
}

// parentOf returns an error if output has no directory to be made in.
func parentOf(output string) error {
	_, err := os.Stat(filepath.Dir(filepath.Clean(output)))
	return writing(output, err)
}

// exitCode classifies err. A command that was interrupted fails in many ways,
// but its code is one.
func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	var usage usageError
	var yaml *strictyaml.Error
	if errors.As(err, &usage) || errors.As(err, &yaml) || is(err, profiles.ErrUnknown, profiles.ErrInvalid, sign.ErrKey) {
		return exitUsage
	}
	var selector *blockdev.SyntaxError
	if errors.As(err, &selector) || is(err, blockdev.ErrAmbiguous, slots.ErrSlot) {
		return exitUsage
	}
	var output outputError
	var write *install.Error
	if errors.As(err, &output) || errors.As(err, &write) || is(err, imager.ErrOutput, fs.ErrExist, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS) {
		return exitOutput
	}
	if is(err, imager.ErrRefused, base.ErrFormat, base.ErrPart, base.ErrRefused, extensions.ErrIncompatible,
		extensions.ErrFormat, extensions.ErrHostile, extensions.ErrManifest, deb.ErrFormat, deb.ErrTruncated, deb.ErrLimit,
		kernel.ErrNoKernel, kernel.ErrNoModules, kernel.ErrTwo, kernel.ErrRelease, kernel.ErrArch, kernel.ErrFormat, kconfig.ErrFormat, module.ErrFormat,
		blockdev.ErrRefused, install.ErrKeep, slots.ErrNoSlots, slots.ErrLoader, slots.ErrDisagree, slots.ErrNoSystem, gpt.ErrNone, gpt.ErrDamaged, sign.ErrFormat, sign.ErrSignature, sign.ErrSigner, kit.ErrFormat, kit.ErrRefused, kit.ErrBuild) {
		return exitRefused
	}
	if is(err, fs.ErrNotExist, blockdev.ErrNoMatch, rootfs.ErrNoPackage) {
		return exitNotFound
	}
	return exitFailed
}

func is(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}
