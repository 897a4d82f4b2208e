package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// brokerDiskSize is that of each broker's disk, where disks are struck: it is filled within a second.
const brokerDiskSize = 96 << 20

// lacksForDisks is what this machine lacks for faults of disks; empty if nothing.
func lacksForDisks() string {
	if os.Geteuid() != 0 {
		return "loop devices need root"
	}
	for _, tool := range []string{"mkfs.ext4", "losetup", "mount", "fsfreeze", "chattr"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err.Error()
		}
	}
	dir, err := os.MkdirTemp("", "pulley-disk.")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	d, err := newDisk(filepath.Join(dir, "image"), filepath.Join(dir, "at"), brokerDiskSize)
	if err == nil {
		err = errors.Join(d.lock("."), d.unlock("."))
	}
	if err = errors.Join(err, d.remove()); err != nil {
		return err.Error()
	}
	return ""
}

// disk is a file system in a file.
type disk struct {
	image, at string
	device    string
	devices   []string // all that are to be given back
}

func newDisk(image, at string, size int64) (*disk, error) {
	d := &disk{image: image, at: at}
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close(), os.MkdirAll(at, 0o755))
	}
	if err == nil {
		err = command("mkfs.ext4", "-q", "-F", image)
	}
	if err == nil {
		err = d.mount()
	}
	return d, err
}

func (d *disk) mount() error {
	out, err := exec.Command("losetup", "-f", "--show", d.image).CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup %s: %w: %s", d.image, err, out)
	}
	d.device = strings.TrimSpace(string(out))
	d.devices = append(d.devices, d.device)
	if err := command("blockdev", "--setrw", d.device); err != nil {
		return err
	}
	return command("mount", d.device, d.at)
}

// cutOff lets nothing more reach the device.
func (d *disk) cutOff() error { return command("blockdev", "--setro", d.device) }

// restore goes on with a copy of what the device has.
func (d *disk) restore() error {
	copied := d.image + ".copy"
	if err := command("cp", "--sparse=always", d.image, copied); err != nil {
		return err
	}
	if err := command("umount", "-l", d.at); err != nil {
		return err
	}
	d.image = copied
	return d.mount()
}

// remove gives everything back.
func (d *disk) remove() (err error) {
	command("fsfreeze", "-u", d.at)
	command("chattr", "-R", "-f", "-i", d.at)
	err = command("umount", "-l", d.at)
	for _, device := range d.devices {
		command("blockdev", "--setrw", device) // it has to be writable to whoever gets it next
		err = errors.Join(err, command("losetup", "-d", device))
	}
	return err
}

// fill leaves no room on the disk, and checks that.
func (d *disk) fill() error {
	f, err := os.Create(filepath.Join(d.at, "fill"))
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size >= 1<<9; size /= 2 { // the last rest, too
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		err = nil
	}
	if err := d.write(); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: a write to the full disk: %v", errNoEffect, err)
	}
	return nil
}

func (d *disk) empty() error { return os.Remove(filepath.Join(d.at, "fill")) }

// lock makes all that the broker has on the disk read-only, also what it has open, and checks that.
func (d *disk) lock(store string) error {
	open, err := os.OpenFile(filepath.Join(d.at, store, "check"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer open.Close()
	if err := command("chattr", "-R", "-f", "+i", filepath.Join(d.at, store)); err != nil {
		return err
	}
	if _, err := open.Write([]byte("x")); !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w: a write to the read-only disk: %v", errNoEffect, err)
	}
	return nil
}

func (d *disk) unlock(store string) error {
	return errors.Join(command("chattr", "-R", "-f", "-i", filepath.Join(d.at, store)), os.Remove(filepath.Join(d.at, store, "check")))
}

// hang makes writes to the disk wait, until thaw.
func (d *disk) hang() error { return command("fsfreeze", "-f", d.at) }
func (d *disk) thaw() error { return command("fsfreeze", "-u", d.at) }

// write writes a little to the disk, and waits until it is there.
func (d *disk) write() error {
	f, err := os.CreateTemp(d.at, "written-") // a new file needs room
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync())
}

// writeAll writes until ctx ends, and returns how long the slowest write took.
func (d *disk) writeAll(ctx context.Context) (slowest time.Duration, err error) {
	for ctx.Err() == nil && err == nil {
		began := time.Now()
		err = d.write()
		slowest = max(slowest, time.Since(began))
		pause(ctx, 10*time.Millisecond)
	}
	return slowest, err
}

// fullDisk fills the disk of a broker.
func (in *injector) fullDisk(ctx context.Context, i int, hold time.Duration) (effect string, err error) {
	d := in.fleet.disks[i]
	return in.unwritable(ctx, i, hold, d.fill, d.empty)
}

// readOnlyDisk makes the streams of a broker read-only.
func (in *injector) readOnlyDisk(ctx context.Context, i int, hold time.Duration) (effect string, err error) {
	d := in.fleet.disks[i]
	return in.unwritable(ctx, i, hold, func() error { return d.lock("jetstream") }, func() error { return d.unlock("jetstream") })
}

// unwritable makes the disk of a broker one that cannot be written, checks that the broker has noticed, and waits until it has
// recovered by itself.
func (in *injector) unwritable(ctx context.Context, i int, hold time.Duration, strike, heal func() error) (effect string, err error) {
	b := in.fleet.Brokers[i]
	from := b.logged()
	if err := strike(); err != nil {
		return "", errors.Join(err, heal())
	}
	pause(ctx, hold)
	noticed := b.says(from, "has given up writing to the store")
	if err := heal(); err != nil {
		return "", err
	}
	if !noticed {
		return "", fmt.Errorf("%w: the broker did not notice it", errNoEffect)
	}
	return "the broker could not write, and started again by itself", in.fleet.await(ctx, b, func() bool { return b.says(from, "the server has started again") })
}

// hangingDisk makes the writes of a broker wait.
func (in *injector) hangingDisk(ctx context.Context, i int, hold time.Duration) (effect string, err error) {
	d := in.fleet.disks[i]
	if err := d.hang(); err != nil {
		return "", err
	}
	var done atomic.Bool
	wrote := make(chan error, 1)
	go func() { // ends when the disk answers
		err := d.write()
		done.Store(true)
		wrote <- err
	}()
	pause(ctx, hold)
	hung := !done.Load()
	if err := errors.Join(d.thaw(), <-wrote); err != nil {
		return "", err
	}
	if !hung {
		err = errNoEffect
	}
	return fmt.Sprintf("a write took %.1f s", hold.Seconds()), err
}

const slowWrite, slowPause = 400 * time.Millisecond, 100 * time.Millisecond

// slowDisk makes the writes of a broker wait for up to 0.4 s.
func (in *injector) slowDisk(ctx context.Context, i int, hold time.Duration) (effect string, err error) {
	d := in.fleet.disks[i]
	type result struct {
		slowest time.Duration
		err     error
	}
	writing, stop := context.WithTimeout(ctx, hold)
	defer stop()
	wrote := make(chan result, 1)
	go func() { // ends with writing
		slowest, err := d.writeAll(writing)
		wrote <- result{slowest, err}
	}()
	for writing.Err() == nil && err == nil {
		err = d.hang()
		pause(writing, slowWrite)
		err = errors.Join(err, d.thaw())
		pause(writing, slowPause)
	}
	w := <-wrote
	if err = errors.Join(err, w.err); err == nil && w.slowest < slowWrite/2 {
		err = errNoEffect
	}
	return fmt.Sprintf("the slowest write took %.1f s", w.slowest.Seconds()), err
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
