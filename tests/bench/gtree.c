// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

/*
 * The mappings of a domain in a GTree, as QEMU's virtio-iommu holds them: an interval as the key, of which two that
 * overlap compare equal; key and value from the heap; a recursive mutex around what threads share.
 *
 * Takes operations on standard input, each with the sequence it works on, and answers with what that took; all in
 * words of 64 bits of this machine. Ends when its input does. The benchmarks start it; gtree.rs is the other end.
 */

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum op { MAP, MAP_IN_ORDER, UNMAP, PAIR, LOOKUP, SHARED, BUSY, REPLAY, DESTROY };

enum { ACCESS = 64, READABLE = 1, WRITABLE = 2 };

struct interval {
    uint64_t start, last;
};

struct target {
    uint64_t gpa;
    uint32_t flags;
};

struct answer {
    uint64_t ns, count, sum, writer_ns, pairs;
};

static GTree *tree;
static pthread_mutex_t mutex;

static gint compare(gconstpointer a, gconstpointer b, gpointer data)
{
    const struct interval *one = a, *other = b;

    (void)data;
    if (one->last < other->start) {
        return -1;
    }
    return one->start > other->last;
}

static void new_tree(void)
{
    tree = g_tree_new_full(compare, NULL, g_free, g_free);
}

static uint64_t read_clock(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

/* What this thread had of a processor. */
static uint64_t now(void)
{
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

/* For threads that wait for each other. */
static uint64_t wall_clock(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

/* The same target for a range as the other sides have. */
static uint64_t gpa_of(uint64_t start)
{
    return (start * UINT64_C(0x9e3779b97f4a7c15) >> 36) * 4096;
}

static uint64_t map(const struct interval *range)
{
    struct interval *key = g_malloc0(sizeof(*key));
    struct target *value;

    *key = *range;
    if (g_tree_lookup(tree, key)) {
        g_free(key);
        return 0;
    }
    value = g_malloc0(sizeof(*value));
    value->gpa = gpa_of(range->start);
    value->flags = READABLE | WRITABLE;
    g_tree_insert(tree, key, value);
    return 1;
}

/* Removes what lies within the range one by one, and stops at what does not. */
static uint64_t unmap(const struct interval *range)
{
    struct interval *key;
    struct target *value;
    uint64_t removed = 0;

    while (g_tree_lookup_extended(tree, range, (gpointer *)&key, (gpointer *)&value)) {
        if (key->start < range->start || key->last > range->last) {
            break;
        }
        g_tree_remove(tree, key);
        removed++;
    }
    return removed;
}

static uint64_t lookup(uint64_t iova)
{
    struct interval wanted = { iova, iova }, *key;
    struct target *value;

    if (!g_tree_lookup_extended(tree, &wanted, (gpointer *)&key, (gpointer *)&value)) {
        return 0;
    }
    if (!(value->flags & READABLE) || ACCESS - 1 > key->last - iova) {
        return 0;
    }
    return value->gpa + (iova - key->start);
}

static uint64_t pair(const struct interval *range)
{
    uint64_t done = unmap(range);

    return done + map(range);
}

static uint64_t locked_lookup(uint64_t iova)
{
    uint64_t gpa;

    pthread_mutex_lock(&mutex);
    gpa = lookup(iova);
    pthread_mutex_unlock(&mutex);
    return gpa;
}

static void locked_pair(const struct interval *range)
{
    pthread_mutex_lock(&mutex);
    unmap(range);
    pthread_mutex_unlock(&mutex);
    pthread_mutex_lock(&mutex);
    map(range);
    pthread_mutex_unlock(&mutex);
}

static struct answer over_ranges(uint64_t (*step)(const struct interval *), const uint64_t *words, uint64_t count,
                                 uint64_t warm_up)
{
    const struct interval *ranges = (const struct interval *)words;
    struct answer answer = { .count = count };
    uint64_t begin;

    for (uint64_t i = 0; i < warm_up; i++) {
        step(&ranges[i]);
    }
    begin = now();
    for (uint64_t i = 0; i < count; i++) {
        answer.sum += step(&ranges[i]);
    }
    answer.ns = now() - begin;
    return answer;
}

static struct answer over_addresses(uint64_t (*step)(uint64_t), const uint64_t *iovas, uint64_t count)
{
    struct answer answer = { .count = count };
    uint64_t begin;

    for (uint64_t i = 0; i < count / 8; i++) {
        step(iovas[i]);
    }
    begin = now();
    for (uint64_t i = 0; i < count; i++) {
        answer.sum += step(iovas[i]);
    }
    answer.ns = now() - begin;
    return answer;
}

struct writer {
    const struct interval *ranges;
    uint64_t count;
    uint64_t ns, pairs;
    atomic_bool under_way, enough;
};

static void *write_on(void *data)
{
    struct writer *writer = data;
    uint64_t begin = wall_clock();

    do {
        locked_pair(&writer->ranges[writer->pairs++ % writer->count]);
        atomic_store_explicit(&writer->under_way, true, memory_order_relaxed);
    } while (!atomic_load_explicit(&writer->enough, memory_order_relaxed));
    writer->ns = wall_clock() - begin;
    return NULL;
}

/* Lookups for a time beside a thread of pairs; the sum counts what was not found. */
static struct answer busy(const uint64_t *words, uint64_t count)
{
    struct writer writer = { .ranges = (const struct interval *)&words[2], .count = words[1] };
    const uint64_t *iovas = &words[2 + 2 * writer.count];
    uint64_t duration = words[0], begin, addresses = count - 2 - 2 * writer.count;
    struct answer answer = { 0 };
    pthread_t thread;

    if (pthread_create(&thread, NULL, write_on, &writer)) {
        exit(EXIT_FAILURE);
    }
    while (!atomic_load_explicit(&writer.under_way, memory_order_relaxed)) {
    }
    for (begin = wall_clock(); wall_clock() - begin < duration;) {
        for (int i = 0; i < 128; i++) {
            answer.sum += !locked_lookup(iovas[answer.count++ % addresses]);
        }
    }
    answer.ns = wall_clock() - begin;
    atomic_store_explicit(&writer.enough, true, memory_order_relaxed);
    pthread_join(thread, NULL);
    answer.writer_ns = writer.ns;
    answer.pairs = writer.pairs;
    return answer;
}

static gboolean hand_over(gpointer key, gpointer value, gpointer data)
{
    struct answer *answer = data;

    (void)key;
    answer->count++;
    answer->sum += ((struct target *)value)->gpa;
    return FALSE;
}

static struct answer replay(void)
{
    struct answer answer = { 0 };
    uint64_t begin = now();

    g_tree_foreach(tree, hand_over, &answer);
    answer.ns = now() - begin;
    return answer;
}

static struct answer destroy(void)
{
    struct answer answer = { .count = g_tree_nnodes(tree) };
    uint64_t begin = now();

    g_tree_destroy(tree);
    answer.ns = now() - begin;
    new_tree();
    return answer;
}

static struct answer run(uint64_t op, const uint64_t *words, uint64_t count)
{
    switch (op) {
    case MAP:
    case MAP_IN_ORDER:
        return over_ranges(map, words, count / 2, 0);
    case UNMAP:
        return over_ranges(unmap, words, count / 2, 0);
    case PAIR:
        return over_ranges(pair, words, count / 2, count / 2 / 8);
    case LOOKUP:
        return over_addresses(lookup, words, count);
    case SHARED:
        return over_addresses(locked_lookup, words, count);
    case BUSY:
        return busy(words, count);
    case REPLAY:
        return replay();
    case DESTROY:
        return destroy();
    }
    exit(EXIT_FAILURE);
}

int main(void)
{
    uint64_t head[2], version = (uint64_t)glib_major_version << 32 | glib_minor_version;
    pthread_mutexattr_t recursive;

    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &recursive);
    new_tree();
    fwrite(&version, sizeof(version), 1, stdout);
    fflush(stdout);
    while (fread(head, sizeof(head), 1, stdin) == 1) {
        uint64_t *words = g_new(uint64_t, head[1]);
        struct answer answer;

        if (fread(words, sizeof(*words), head[1], stdin) != head[1]) {
            return EXIT_FAILURE;
        }
        answer = run(head[0], words, head[1]);
        fwrite(&answer, sizeof(answer), 1, stdout);
        fflush(stdout);
        g_free(words);
    }
    return EXIT_SUCCESS;
}
