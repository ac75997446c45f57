"""The scorer: exact scores of all users with all posts, and each user's best n posts.

    score(user, post) = sum over trees of the value of the pair's leaf + user factors . post factors

A forest that walks each tree for each pair costs users x posts x trees x depth.
Here a pair costs one addition for each *bundle* of trees:

    compile the forest for some posts:
        for each tree:                                                           forest.py
            subtract the middle of its leaf values, and quantise them to integers
            cut its leaves into blocks of at most 31                             leaf_blocks.py
            for each block, column and bin of the column's values:
                keep = mask of the leaves that are left at the splits on the column
            # leaf of a pair = the one bit of the AND of `keep` over all columns
        join blocks into bundles: at most 256 distinct mask combinations over    bundles.py
            the user and affinity columns together; number these combinations
            # row id of a user in a bundle = sum over columns of offset[bin]
        put posts that belong to the same groups into post blocks of 32          compile.py

    score a chunk of users:                                                      chunk.py
        row ids (users, bundles) = sum of the offsets of the user columns
        for each post block:
            current ids = row ids + offsets of the affinities with the post block's groups
            for each bundle and row of its table:                                leaf_tables.py
                row_sums = sum over the bundle's leaf blocks of
                    leaf values[mask of the row AND masks of the 32 posts]
            for each user:                                                       simd.py
                sums = sum over bundles of row_sums[current id of the user]      # 32 integers
                scores = quantum * sums + offset + user factors . post factors
            every 16 post blocks, for each user:                                 top_n.py
                push scores above the user's threshold to the user's buffer,
                    except posts that the user liked
        lists = the best n of each buffer, sorted; equal scores by likes, then by row

The row sums cost the same for any number of users, so a chunk has many users.
score.py cuts the users into chunks and runs chunks in threads or processes.

A pair's leaf is LightGBM's, because a split depends on one column only:
`Tree.goes_left` in forest.py decides for each bin of the column which leaves are left.

Exactness: leaf values are multiples of one quantum, so their sums are integers
and do not depend on the order of addition. compile.py raises ModelError for a
model whose quantisation error would exceed 1e-5 at six standard deviations,
with errors taken as independent. The dot product is a chain of fused
multiply-adds, and the score is rounded to float32 once. Scores and lists depend
neither on chunks, threads or processes, nor on the processor.
"""
